"""
Larger texts from Debian packages: prose, reference works, documentation and source code, for
machines that reach a Debian or Ubuntu mirror but not the rest of the internet.

    python3 data/debian_corpora.py NAME ... -out DIR [-tokens gpt2|bytes]

NAME is a corpus of the table below or one of the groups prose, english (prose, reference works and
documentation) and all. Packages are unpacked inside DIR and removed when the tokens are written;
nothing is installed and no root is needed. The package lists must be there (apt-get update).
Documents are files, books, chapters or pages, shuffled; one in a hundred is validation (-val).
"""
import gzip
import html.parser
import lzma
import os
import re
import shutil
import struct
import subprocess
import tarfile
import tempfile
import zlib

from austen import austen_documents
from common import (DataError, Progress, add_token_flags, debian_unpack, fraction, make_parser,
                    run)
from text import examine_files, files_below
from token_files import dataset_in_folder, shuffle_and_split, write_documents
from tokenizer import make_tokenizer


# ------------------------------------------------------------------------------------------------
# One function per kind of package: from the unpacked package to text files below the folder `to`

def write_text(to, name, text):
    path = os.path.join(to, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def novels(_, to):
    for book in austen_documents():
        write_text(to, book.name, book.text)


def plain_files(package, to, folder, endings):
    """Files with one of the endings below a folder of the package, unzipped where they are .gz."""
    for name, path in files_below(os.path.join(package, folder), endings):
        with (gzip.open if path.endswith(".gz") else open)(path, "rb") as file:
            write_text(to, name, file.read())


def bible(package, to):
    """The package's program prints its compressed text, a line per verse: "Ge1:1 In the ..."."""
    verses = subprocess.run([f"{package}/usr/bin/bible", "-f", "-p", f"{package}/usr/lib",
                             "gen1:1-rev22:21"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                            check=True, text=True).stdout
    books = {}
    for verse in verses.splitlines():
        place, text = verse.split(" ", 1)
        books.setdefault(re.sub(r"\d+:\d+$", "", place), []).append(text)
    for book, texts in books.items():
        write_text(to, book, "\n".join(texts) + "\n")


class HtmlText(html.parser.HTMLParser):
    """The text of a page, with white space as the tags suggest it."""
    BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "blockquote", "div", "br", "tr", "pre"}
    HIDDEN = {"title", "script", "style"}

    def __init__(self):
        super().__init__()
        self.parts, self.hidden = [], False

    def handle_starttag(self, tag, attrs):
        self.hidden = self.hidden or tag in self.HIDDEN
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag):
        self.hidden = self.hidden and tag not in self.HIDDEN
        if tag in self.BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(re.sub(r"\s+", " ", data))

    def text(self):
        lines = (line.strip() for line in "".join(self.parts).split("\n"))
        return "\n\n".join(line for line in lines if line) + "\n"


def html_pages(package, to, folder):
    for name, path in files_below(os.path.join(package, folder), (".html",)):
        page = HtmlText()
        with open(path, encoding="utf-8", errors="replace") as file:
            page.feed(file.read())
        write_text(to, name, page.text())


# A SWORD module is XML in compressed blocks. The index (.bzs or .czs) has 12 bytes per block:
#
#   bytes   0..3            4..7              8..11
#           offset in the   size in the       size once
#           .bzz/.czz file  .bzz/.czz file    decompressed        little-endian
def sword_module(package, to, folder, kind):
    """kind is b for a block per book of the Bible, c for a block per chapter."""
    for testament in ("ot", "nt"):
        path = os.path.join(package, folder, testament)
        with open(f"{path}.{kind}zs", "rb") as file:
            index = file.read()
        with open(f"{path}.{kind}zz", "rb") as file:
            blocks = file.read()
        for number, (offset, size, _) in enumerate(struct.iter_unpack("<3I", index)):
            if size:
                xml = zlib.decompress(blocks[offset:offset + size]).decode("utf-8", "replace")
                text = sword_text(xml)
                if text.strip():
                    write_text(to, f"{testament}{number:03d}", text)


def sword_text(xml):
    xml = re.sub(r"<title[^>]*>", "\n\n", xml)
    xml = re.sub(r"</title>|<div[^>]*eID[^>]*>|</p>|<lb[^>]*>", "\n", xml)
    text = html.unescape(re.sub(r"<[^>]*>", "", xml))
    lines = (re.sub(r"\s+", " ", line).strip() for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def dictionary(package, to, name):
    """A dictd dictionary is one long text; entries begin at the margin. Pages of about 16 kB."""
    with gzip.open(f"{package}/usr/share/dictd/{name}.dict.dz", "rb") as file:
        text = file.read()                      # .dz is gzip plus an index, which gzip skips
    margin = re.compile(rb"\n(?=\S)")
    start, number = 0, 0
    while start < len(text):
        entry = margin.search(text, min(start + 16384, len(text)))
        stop = entry.end() if entry else len(text)
        write_text(to, f"{number:05d}", text[start:stop])
        start, number = stop, number + 1


def linux_source(package, to):
    """The C files of the kernel, without AMD's generated register tables (a third of all bytes)."""
    folder = os.path.join(package, "usr/src")
    archive = next(name for name in os.listdir(folder) if name.endswith(".tar.xz"))
    path = os.path.join(folder, archive)
    progress = Progress("unpack (compressed)", os.path.getsize(path))
    with open(path, "rb") as compressed, lzma.open(compressed) as stream, \
            tarfile.open(fileobj=stream, mode="r|") as tar:
        for member in tar:
            if (member.isfile() and member.name.endswith((".c", ".h"))
                    and "/amd/include/asic_reg/" not in member.name):
                write_text(to, member.name.split("/", 1)[1], tar.extractfile(member).read())
            progress.add(compressed.tell() - progress.done)
    progress.finish()


# ------------------------------------------------------------------------------------------------
# The corpora. A package with a * depends on the one that carries the release's version in its name.

CORPORA = {
    # name         packages                      reading                        MB of text, license
    "austen":      ([],                          novels, ()),                   #   4, public domain
    "bible":       (["bible-kjv", "bible-kjv-text"], bible, ()),                #   4, public domain
    "psalms":      (["sword-comm-tdavid"], sword_module,                        #  12, public domain
                    ("usr/share/sword/modules/comments/zcom/tdavid", "c")),
    "henry":       (["sword-comm-mhcc"], sword_module,                          #   4, public domain
                    ("usr/share/sword/modules/comments/zcom/mhcc", "b")),
    "anarchism":   (["anarchism"], html_pages, ("usr/share/doc/anarchism",)),   #  12, GPL-2
    "wordnet":     (["dict-wn"], dictionary, ("wn",)),                          #  31, WordNet
    "gcide":       (["dict-gcide"], dictionary, ("gcide",)),                    #  40, GPL-3
    "linux-doc":   (["linux-doc*"], plain_files,                                #  24, GPL-2
                    ("usr/share/doc", (".rst", ".rst.gz"))),
    "python-doc":  (["python3-doc*"], plain_files,                              #  11, PSF license
                    ("usr/share/doc", (".rst.txt", ".rst.txt.gz"))),
    "perl-doc":    (["perl-doc"], plain_files, ("usr/share/perl", (".pod",))),  #   9, Artistic
    "golang":      (["golang-src*"], plain_files, ("usr/share", (".go",))),     #  70, BSD-3
    "linux":       (["linux-source*"], linux_source, ()),                       # 790, GPL-2
}
GROUPS = {
    "prose": ["austen", "bible", "psalms", "henry", "anarchism"],
    "english": ["austen", "bible", "psalms", "henry", "anarchism", "wordnet", "gcide", "linux-doc",
                "python-doc", "perl-doc"],
    "all": list(CORPORA),
}


def main():
    parser = make_parser(__doc__, epilog="corpora: " + ", ".join(CORPORA))
    parser.add_argument("names", nargs="+", metavar="NAME", choices=list(CORPORA) + list(GROUPS))
    parser.add_argument("-out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("-val", type=fraction, default=0.01, metavar="F",
                        help="share of the documents for validation (default 0.01)")
    add_token_flags(parser)
    args = parser.parse_args()

    tokenizer = make_tokenizer(args.tokens, args.ranks)
    dataset = dataset_in_folder(args.out, tokenizer)
    names = list(dict.fromkeys(name for group in args.names for name in GROUPS.get(group, [group])))
    with tempfile.TemporaryDirectory(dir=args.out, prefix="unpacked_") as work:
        files = []
        for name in names:
            files += unpack(name, os.path.join(work, name))
        documents = shuffle_and_split(examine_files(files, "", args.workers), args.val)
        write_documents(dataset, documents, args.workers, "Debian packages: " + ", ".join(names))


def unpack(name, to):
    """Files of a corpus, as text, below the folder `to`."""
    packages, read, arguments = CORPORA[name]
    with tempfile.TemporaryDirectory(dir=os.path.dirname(os.path.dirname(to))) as package:
        for wanted in packages:
            debian_unpack(versioned(wanted) if wanted.endswith("*") else wanted, package)
        read(package, to, *arguments)
    return files_below(to)


def versioned(name):
    """linux-source* is linux-source-6.1 on Debian 12: the package that linux-source depends on."""
    if not shutil.which("apt-cache"):
        raise DataError("apt-cache not found: this script needs Debian or Ubuntu")
    name = name.rstrip("*")
    output = subprocess.run(["apt-cache", "depends", name], text=True, stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL).stdout
    for dependency in re.findall(r"Depends: (\S+)", output):
        if re.search(r"\d", dependency.replace("python3-doc", "")):
            return dependency
    raise DataError(f"apt knows no package {name}; as root, run: apt-get update")


if __name__ == "__main__":
    run(main)
