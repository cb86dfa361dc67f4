#!/usr/bin/env python3
"""
Tests of data/: tokenizing, the token files, the scripts from the command line, bad input. Needs no
network, no package and no data; what happens to be there (the package tiktoken, GPT-2's vocabulary
in data/gpt2.tiktoken) is used for further checks. Prints lines as report.h describes.
"""
import array
import base64
import contextlib
import gzip
import importlib.util
import io
import json
import math
import os
import random
import struct
import subprocess
import sys
import tarfile
import tempfile
import types
import zlib

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
DATA = os.path.join(ROOT, "data")
sys.path.insert(0, DATA)
sys.dont_write_bytecode = True

import austen                   # noqa: E402  (after the path is set)
import debian_corpora           # noqa: E402
import fineweb                  # noqa: E402
import token_files              # noqa: E402
import tokenizer                # noqa: E402
from common import DataError    # noqa: E402

failures = 0


def report(good, name, detail=""):
    global failures
    print(f"{'ok  ' if good else 'FAIL'} {name:<28} {detail}", flush=True)
    failures += not good


def report_equal(name, found, expected, detail=""):
    good = found == expected
    report(good, name, detail if good else f"found {found!r}, expected {expected!r}")


def write(path, content):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())
    return path


def read(path):
    with open(path, "rb") as file:
        return file.read()


def run_script(script, *arguments):
    """(exit status, everything it printed)"""
    result = subprocess.run([sys.executable, os.path.join(DATA, script), *arguments], text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return result.returncode, result.stdout


def read_tokens(*paths):
    """The tokens of token files, after checking header and size."""
    tokens = array.array("H")
    for path in paths:
        content = read(path)
        header = struct.unpack_from("<256i", content)
        assert header[:2] == (20240520, 1) and not any(header[3:]), header
        assert len(content) == 1024 + 2 * header[2], (len(content), header[2])
        body = array.array("H", content[1024:])
        if sys.byteorder == "big":
            body.byteswap()
        tokens += body
    return list(tokens)


def texts(tokens, table):
    """The documents in a token stream; table is the text of each token, end-of-text last."""
    assert tokens[0] == len(table) - 1, "the stream does not begin with end-of-text"
    documents = []
    for token in tokens:
        if token == len(table) - 1:
            documents.append(b"")
        else:
            documents[-1] += table[token]
    return documents


BYTE_TABLE = tokenizer.ByteTokenizer().token_bytes()


# ------------------------------------------------------------------------------------------------
# GPT-2's encoding

MERGES = ("th", "the", " t", " the", "in", "ing", "an", "and", " a", " and", "er", "ab", "aba",
          "bab", "\n\n", "==", "====", "é", "'s")

# text, tokens with the miniature vocabulary, tokens with GPT-2's; from tiktoken 0.14.0
GOLDEN = (
    ("the thing and the other", [257, 32, 256, 261, 265, 259, 32, 111, 257, 114],
     [1169, 1517, 290, 262, 584]),
    ("ababababa babab", [267, 267, 267, 268, 32, 269, 267], [397, 397, 397, 15498, 9289, 397]),
    ("a\n\n\nb  c\t\n d", [97, 270, 10, 98, 32, 32, 99, 9, 10, 32, 100],
     [64, 628, 198, 65, 220, 269, 197, 198, 288]),
    ("=======", [272, 271, 61], [1421, 18604]),
    ("it's café 12½ ok",
     [105, 116, 274, 32, 99, 97, 102, 273, 32, 49, 50, 194, 189, 32, 111, 107],
     [270, 338, 40304, 1105, 23141, 12876]),
    ("\u3000x\x1cy\xa0 z", [227, 128, 128, 120, 28, 121, 194, 160, 32, 122],
     [5099, 222, 87, 216, 88, 1849, 1976]),
    ("日本 🙂", [230, 151, 165, 230, 156, 172, 32, 240, 159, 153, 130],
     [33768, 98, 17312, 105, 32485]),
)

# text and the words it is split into; from the package regex with GPT-2's own pattern
WORDS = (
    ("I'm he'll  'tis", ["I", "'m", " he", "'ll", " ", " '", "tis"]),
    ("a\n\n\nb  c\t\n d ", ["a", "\n\n", "\n", "b", " ", " c", "\t\n", " d", " "]),
    ("x1y½Ⅷ_z", ["x", "1", "y", "½Ⅷ", "_", "z"]),
    ("\x1c \x1cq\x85\xa0 r", ["\x1c", " \x1c", "q", "\x85\xa0", " r"]),
    ("e\u0301 \u0e33\u200bz", ["e", "\u0301", " \u0e33", "\u200b", "z"]),
)


def write_ranks(path):
    """A vocabulary of the 256 bytes and MERGES."""
    tokens = [bytes([byte]) for byte in range(256)] + [merge.encode() for merge in MERGES]
    return write(path, b"".join(base64.b64encode(token) + b" %d\n" % rank
                                for rank, token in enumerate(tokens)))


def join_pairs_plainly(word, ranks):
    """The definition: join the best-ranked neighbours, the leftmost among equals, repeat."""
    parts = [word[i:i + 1] for i in range(len(word))]
    while True:
        pairs = [(ranks[a + b], i) for i, (a, b) in enumerate(zip(parts, parts[1:]))
                 if a + b in ranks]
        if not pairs:
            return [ranks[part] for part in parts]
        _, i = min(pairs)
        parts[i:i + 2] = [parts[i] + parts[i + 1]]


def test_tokenizer(folder):
    path = write_ranks(os.path.join(folder, "mini.tiktoken"))
    ours = tokenizer.Gpt2Tokenizer(path, use_tiktoken=False)
    for text, words in WORDS:
        report_equal("word pattern", ours.words.findall(text), words, repr(text))
    for text, mini, _ in GOLDEN:
        report_equal("bpe, miniature vocabulary", ours.encode_ids(text), mini, repr(text))

    random.seed(1)
    different = 0
    for _ in range(2000):
        ranks = {bytes([byte]): byte for byte in range(256)}
        for _ in range(12):                             # tokens of up to 4 letters, any order
            token = bytes(random.choice(b"abc") for _ in range(random.randint(2, 4)))
            ranks.setdefault(token, len(ranks))
        word = bytes(random.choice(b"abc") for _ in range(random.randint(1, 40)))
        different += (word not in ranks
                      and tokenizer.join_pairs(word, ranks) != join_pairs_plainly(word, ranks))
    report(different == 0, "bpe against its definition", f"2000 random words, {different} differ")

    text = "".join(text for text, _, _ in GOLDEN) * 3
    table = ours.token_bytes()
    decoded = b"".join(table[token] for token in ours.encode_ids(text)).decode()
    report_equal("bpe round trip", decoded, text, f"{len(text)} characters")
    report_equal("bytes that are not UTF-8", ours.encode(b"\xff"), b"\xef\0\xbf\0\xbd\0",
                 "become U+FFFD")
    report_equal("byte tokens", tokenizer.ByteTokenizer().encode(b"\0a\xff"), b"\0\0a\0\xff\0")

    real_path = os.path.join(DATA, "gpt2.tiktoken")
    real = os.path.exists(real_path) and tokenizer.Gpt2Tokenizer(real_path, use_tiktoken=False)
    if real:
        for text, _, expected in GOLDEN:
            report_equal("bpe, GPT-2's vocabulary", real.encode_ids(text), expected, repr(text))
    else:
        print("skip bpe, GPT-2's vocabulary: data/gpt2.tiktoken is not there")
    if importlib.util.find_spec("tiktoken"):
        for plain in [ours] + [real] * bool(real):
            package = tokenizer.Gpt2Tokenizer(plain.ranks_path)
            characters = [chr(c) for c in range(0x3100)] + list(" \n\t'sdmtlvre019.,=") * 200
            lines = ["".join(random.choices(characters, k=40)) for _ in range(5000)]
            different = sum(plain.encode_ids(line) != package.encode_ids(line) for line in lines)
            report(different == 0, "bpe against tiktoken", f"{plain.vocab_size} tokens, "
                   f"{len(lines)} random lines, {different} differ")
    else:
        print("skip bpe against tiktoken: the package tiktoken is not installed")


# ------------------------------------------------------------------------------------------------
# Token files

def test_pieces(folder):
    """Long documents are tokenized in pieces; that must not show."""
    ranks = write_ranks(os.path.join(folder, "mini.tiktoken"))
    text = ("the other thing\nand\n\n  the = sign\t\nin the" * 40 + " \n" + "日本\n" * 50)
    text = text.encode()
    path = write(os.path.join(folder, "long.txt"), b"left out " + text)
    in_file = token_files.Document("long", path, 9, 9 + len(text))
    in_memory = token_files.Document("long", text=text)
    usual, token_files.PIECE_BYTES = token_files.PIECE_BYTES, 100
    for name in ("gpt2", "bytes"):
        coder = tokenizer.make_tokenizer(name, ranks)
        whole = struct.pack("<H", coder.end_of_text) + coder.encode(text)
        for document in (in_file, in_memory):
            for workers in (1, 2):
                pieces = list(token_files.encode([document], coder, workers))
                joined = b"".join(tokens for _, tokens in pieces)
                report(joined == whole and len(pieces) > 10, "pieces of a long document",
                       f"{name}, {len(pieces)} pieces, {workers} processes")
    token_files.PIECE_BYTES = usual


def test_shards(folder):
    pattern = os.path.join(folder, "shards 100% NNNNNN.bin")
    tokens = struct.pack("<2300H", *range(2300))

    def commit(shard_tokens, count):
        writer = token_files.ShardWriter(pattern, shard_tokens)
        for start in range(0, 2 * count, 14):           # 7 tokens at a time
            writer.add(tokens[start:min(start + 14, 2 * count)])
        paths = writer.commit()
        return writer.counts, read_tokens(*paths) == list(range(count)), len(os.listdir(folder))

    os.makedirs(folder)
    report_equal("shards", commit(500, 2300), ([500, 500, 500, 500, 300], True, 5))
    report_equal("shards, shorter run", commit(1000, 1600), ([1000, 600], True, 2),
                 "files of the longer run before it are gone")
    report_equal("shards, small remainder", commit(1000, 2300), ([1000, 1300], True, 2),
                 "joins the last shard")
    before = [read(os.path.join(folder, name)) for name in sorted(os.listdir(folder))]
    writer = token_files.ShardWriter(pattern, 500)
    writer.add(tokens)
    writer.discard()
    after = [read(os.path.join(folder, name)) for name in sorted(os.listdir(folder))]
    report(before == after, "shards, discarded run", "leaves the earlier files and nothing else")


def test_tokenizer_file(folder):
    coder = tokenizer.make_tokenizer("gpt2", write_ranks(os.path.join(folder, "mini.tiktoken")))
    content = token_files.tokenizer_file(coder)
    header, position, table = struct.unpack_from("<256i", content), 1024, []
    while position < len(content):
        length = content[position]
        table.append(content[position + 1:position + 1 + length])
        position += 1 + length
    report_equal("tokenizer.bin header", header, (20240328, 2, 276, 275) + (0,) * 252)
    report(table == coder.token_bytes() and table[260] == b"in" and table[275] == b"<|endoftext|>",
           "tokenizer.bin body", f"{len(table)} tokens")


def test_split():
    documents = [token_files.Document(f"file {i}", text=b"x") for i in range(5000)]
    marked = token_files.shuffle_and_split(documents, 0.1)
    again = token_files.shuffle_and_split(documents[1::2], 0.1)
    share = sum(document.validation for document in marked) / len(marked)
    validation = {document.name for document in marked if document.validation}
    report(abs(share - 0.1) < 0.02, "validation share", f"{share:.3f} of 5000, asked for 0.1")
    report(all(document.validation == (document.name in validation) for document in again),
           "validation by name only", "with half of the documents the same ones are chosen")
    few = token_files.shuffle_and_split(documents[:3], 0.0001)
    report_equal("validation, few documents", [d.validation for d in few], [True, False, False])


# ------------------------------------------------------------------------------------------------
# Scripts

def test_text(folder):
    corpus, out = os.path.join(folder, "corpus"), os.path.join(folder, "out")
    contents = {f"part{i % 3}/{i}.txt": f"document {i}\n" * (i + 1) for i in range(40)}
    for name, content in contents.items():
        write(os.path.join(corpus, name), content)
    write(os.path.join(corpus, "copy.txt"), contents["part1/7.txt"])
    write(os.path.join(corpus, "binary.txt"), b"a\0b")
    write(os.path.join(corpus, "latin1.txt"), "é".encode("latin-1"))
    write(os.path.join(corpus, "empty.txt"), b"")
    write(os.path.join(corpus, ".hidden.txt"), "hidden")
    write(os.path.join(corpus, "other.log"), "a log")

    status, output = run_script("text.py", corpus, "-out", out, "-tokens", "bytes", "-val", "0.2",
                                "-ext", ".txt,.md")
    train_path, val_path = (os.path.join(out, f"{name}_000000.bin") for name in ("train", "val"))
    report(status == 0, "text.py", output.splitlines()[-1] if output else "no output")
    train, val = (texts(read_tokens(path), BYTE_TABLE) for path in (train_path, val_path))
    expected = sorted(content.encode() for content in contents.values())
    report(sorted(train + val) == expected, "text.py, whole documents",
           f"{len(train)} training and {len(val)} validation documents, each once and complete")
    report(train != sorted(train) and 1 < len(val) < 20, "text.py, shuffled", "not in path order")
    report("1 a duplicate, 1 empty, 1 not UTF-8, 1 not text" in output, "text.py, left out",
           output.split("left out: ")[-1].splitlines()[0])

    summary = json.loads(read(os.path.join(out, "data.json")))
    tokens = read_tokens(val_path)
    shares = [tokens.count(token) / len(tokens) for token in set(tokens)]
    entropy = -sum(share * math.log(share) for share in shares)
    report(abs(summary["val_unigram_entropy"] - entropy) < 1e-5 and summary["vocab_size"] == 257
           and summary["val_tokens"] == len(tokens), "data.json",
           f"unigram entropy {entropy:.4f}")

    ranks = write_ranks(os.path.join(folder, "mini.tiktoken"))
    found = []
    for workers in ("1", "3"):
        run_script("text.py", corpus, "-out", out, "-ranks", ranks, "-workers", workers,
                   "-shard", "1000")
        shards = sorted(name for name in os.listdir(out) if name.startswith("train"))
        found.append([read(os.path.join(out, name)) for name in shards])
    report(found[0] == found[1] and len(found[0]) > 2, "text.py, processes",
           f"1 and 3 write the same {len(found[0])} shards")
    table = tokenizer.make_tokenizer("gpt2", ranks).token_bytes()
    paths = [os.path.join(out, name) for name in shards]
    decoded = texts(read_tokens(*paths), table) + texts(read_tokens(val_path), table)
    report(sorted(decoded) == sorted(expected + [b"a log"]), "text.py, GPT-2 encoding",
           "decodes to the same documents")

    stories = write(os.path.join(folder, "stories.txt"),
                    "\n".join(f"story {i}\n<|endoftext|>" for i in range(30)))
    run_script("text.py", stories, "-out", out, "-tokens", "bytes")
    found = texts(read_tokens(train_path), BYTE_TABLE) + texts(read_tokens(val_path), BYTE_TABLE)
    report(sorted(found) == sorted(b"story %d" % i for i in range(30)), "text.py, separator",
           "30 documents in one file")

    poem = write(os.path.join(folder, "poem.txt"), "a line\n" * 100)
    run_script("text.py", poem, "-out", out, "-tokens", "bytes")
    sizes = [len(texts(read_tokens(path), BYTE_TABLE)[0]) for path in (train_path, val_path)]
    report_equal("text.py, one document", sizes, [637, 63], "divided at the end of a line")
    return corpus, out, poem


def test_bad_input(folder, corpus, out, poem):
    before = {name: read(os.path.join(out, name)) for name in os.listdir(out)}
    bad = os.path.join(folder, "bad")
    short = write(os.path.join(bad, "short.txt"), "no line end")
    binary = write(os.path.join(bad, "binary.dat"), b"\0\1\2")
    latin = write(os.path.join(bad, "latin.txt"), "caf\xe9\n".encode("latin-1"))
    empty = os.path.join(bad, "folder")
    os.makedirs(empty)
    not_ranks = write(os.path.join(bad, "a.tiktoken"), "YQ== 0\nnonsense\n")
    few_ranks = write(os.path.join(bad, "b.tiktoken"), "YQ== 0\nYg== 1\n")
    archive = write(os.path.join(bad, "stories.tar.gz"), "not an archive")
    cases = (
        ("text.py", (os.path.join(bad, "nowhere"),), "no such file or folder"),
        ("text.py", (short,), "give more text"),
        ("text.py", (binary,), "not text"),
        ("text.py", (latin,), "iconv"),
        ("text.py", (empty,), "no text found"),
        ("text.py", (poem, "-val", "1.5"), "-val"),
        ("text.py", (poem, "-val", "x"), "-val"),
        ("text.py", (poem, "-workers", "0"), "-workers"),
        ("text.py", (poem, "-shard", "0"), "a shard holds"),
        ("text.py", (poem, "-tokens", "words"), "-tokens"),
        ("text.py", (poem, "-tokens", "gpt2", "-ranks", os.path.join(bad, "none")), "no such file"),
        ("text.py", (poem, "-tokens", "gpt2", "-ranks", not_ranks), "line 2"),
        ("text.py", (poem, "-tokens", "gpt2", "-ranks", few_ranks), "254 of the 256 single bytes"),
        ("text.py", (poem, "-out", os.path.join(short, "out")), "Not a directory"),
        ("machine_text.py", ("-folders", empty), "-folders"),
        ("tinystories.py", ("-archive", archive), "is damaged"),
        ("debian_corpora.py", ("nothing",), "invalid choice"),
        ("quickstart.py", ("-text", empty), "no text found"),
    )
    for script, arguments, message in cases:
        if "-out" not in arguments:
            arguments = (*arguments, "-out", out)
        if "-tokens" not in arguments and script != "quickstart.py":
            arguments = (*arguments, "-tokens", "bytes")
        status, output = run_script(script, *arguments)
        said = output.strip().splitlines()[-1] if output.strip() else "nothing"
        report(status != 0 and message in output and "Traceback" not in output, "bad input",
               said.replace(folder, "..."))
    after = {name: read(os.path.join(out, name)) for name in os.listdir(out)}
    report(before == after, "bad input", "the files of an earlier run are all there and unchanged")


def test_quickstart(folder, corpus):
    out = os.path.join(folder, "quick")
    status, output = run_script("quickstart.py", "-text", corpus, "-out", out)
    names = sorted(os.listdir(out))
    train = texts(read_tokens(os.path.join(out, "quickstart_train.bin")), BYTE_TABLE)
    val = texts(read_tokens(os.path.join(out, "quickstart_val.bin")), BYTE_TABLE)
    summary = json.loads(read(os.path.join(out, "quickstart.json")))
    report(status == 0
           and names == ["quickstart.json", "quickstart_train.bin", "quickstart_val.bin"]
           and len(train) + len(val) == 41 and "unigram entropy" in output, "quickstart.py -text",
           f"{len(train)} + {len(val)} documents, {summary['val_unigram_entropy']} nats")
    before = os.stat(os.path.join(out, "quickstart_train.bin")).st_mtime_ns
    status, output = run_script("quickstart.py", "-out", out)
    report(status == 0 and "text of an earlier run" in output
           and os.stat(os.path.join(out, "quickstart_train.bin")).st_mtime_ns == before,
           "quickstart.py again", "keeps what is there")


def test_sources(folder):
    out = os.path.join(folder, "sources")
    machine = os.path.join(folder, "machine")
    for i in range(20):
        write(os.path.join(machine, f"{i}.py"), f"# {i}\n" * 200)
    write(os.path.join(machine, "small.py"), "x = 1\n")
    write(os.path.join(machine, "data.csv"), "1,2\n" * 200)
    status, _ = run_script("machine_text.py", "-folders", machine, "-out", out, "-tokens", "bytes")
    found = texts(read_tokens(os.path.join(out, "train_000000.bin")), BYTE_TABLE)
    report(status == 0 and len(found) == 19, "machine_text.py", f"{len(found)} training documents")

    archive = os.path.join(folder, "stories.tar.gz")
    with tarfile.open(archive, "w:gz") as tar:
        for i in range(3):
            content = json.dumps([{"story": f" story {i}.{j}\n"} for j in range(4)]).encode()
            member = tarfile.TarInfo(f"./data{i:02d}.json")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    status, _ = run_script("tinystories.py", "-archive", archive, "-out", out, "-tokens", "bytes")
    train, val = (texts(read_tokens(os.path.join(out, f"{name}_000000.bin")), BYTE_TABLE)
                  for name in ("train", "val"))
    report(status == 0 and val == [b"story 0.%d" % j for j in range(4)]
           and train == [b"story %d.%d" % (i, j) for i in (1, 2) for j in range(4)],
           "tinystories.py", f"{len(train)} training and {len(val)} validation stories")

    def r_vector(strings):
        body = b"X\n" + struct.pack(">4i", 3, 0x040201, 0x030500, 5) + b"UTF-8"
        body += struct.pack(">2i", 16, len(strings))
        body += b"".join(struct.pack(">2i", 0x40009, len(text)) + text for text in strings)
        return struct.pack(">I", len(body)) + zlib.compress(body)

    books = [[b"EMMA", b"", b"by"], [b"Persuasion"]]
    database = b"".join(r_vector(book) for book in books)
    report_equal("austen.py, R database",
                 [austen.r_character_vector(record) for record in austen.r_records(database)],
                 books)
    for name, damaged in (("cut off", database[:-3]), ("not zlib", b"\0\0\0\4abcdef")):
        try:
            list(austen.r_records(damaged))
            report(False, "austen.py, damaged database", name)
        except DataError as error:
            report("not in the expected format" in str(error), "austen.py, damaged database", name)


def test_debian(folder):
    """The readers of debian_corpora.py, on packages of a few bytes."""
    package, to = os.path.join(folder, "package"), os.path.join(folder, "unpacked")

    def unpacked(name):
        return {os.path.relpath(os.path.join(parent, file), os.path.join(to, name)):
                read(os.path.join(parent, file)).decode()
                for parent, _, files in os.walk(os.path.join(to, name)) for file in files}

    write(f"{package}/doc/a.html", "<html><head><title>no</title></head><p>One <b>two</b>\nthree"
          "</p><li>four &amp; five</li></html>")
    debian_corpora.html_pages(package, f"{to}/html", "doc")
    report_equal("html pages", unpacked("html"), {"doc/a.html": "One two three\n\nfour & five\n"})

    write(f"{package}/doc/b.rst.gz", gzip.compress(b"Title\n=====\n"))
    debian_corpora.plain_files(package, f"{to}/plain", "doc", (".rst.gz",))
    report_equal("zipped files", unpacked("plain"), {"doc/b.rst.gz": "Title\n=====\n"})

    entries = "".join(f"word{i}\n    n 1: meaning {i}\n" for i in range(2000))
    write(f"{package}/usr/share/dictd/mini.dict.dz", gzip.compress(entries.encode()))
    debian_corpora.dictionary(package, f"{to}/dict", "mini")
    pages = [text for _, text in sorted(unpacked("dict").items())]
    report("".join(pages) == entries and len(pages) == 4
           and all(page.startswith("word") for page in pages), "dictionary", f"{len(pages)} pages")

    chapters = [b"", b"<chapter/><title>Psalm 1</title> <hi>Blessed</hi> is &amp; was<lb/>he"]
    blocks = [zlib.compress(chapter) if chapter else b"" for chapter in chapters]
    offsets = [(0, len(blocks[0]), 0), (len(blocks[0]), len(blocks[1]), len(chapters[1]))]
    for testament in ("ot", "nt"):
        write(f"{package}/sword/{testament}.czs",
              b"".join(struct.pack("<3I", *row) for row in offsets))
        write(f"{package}/sword/{testament}.czz", b"".join(blocks))
    debian_corpora.sword_module(package, f"{to}/sword", "sword", "c")
    report_equal("sword module", unpacked("sword"),
                 {name: "Psalm 1\nBlessed is & was\nhe\n" for name in ("ot001", "nt001")})

    os.makedirs(f"{package}/usr/src")
    with tarfile.open(f"{package}/usr/src/linux.tar.xz", "w:xz") as tar:
        for name in ("l/a.c", "l/b.h", "l/c.S", "l/drivers/gpu/drm/amd/include/asic_reg/d.h"):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(b"abc"))
    with contextlib.redirect_stdout(io.StringIO()):
        debian_corpora.linux_source(package, f"{to}/linux")
    report_equal("linux source", sorted(unpacked("linux")), ["a.c", "b.h"], "without asic_reg")


def test_fineweb(folder):
    """With a stand-in for the package datasets: 40 pages, shards of 200 tokens."""
    out = os.path.join(folder, "fineweb")
    pages = [{"id": f"<urn:{i}>", "text": f"page {i:2d} " * 7} for i in range(40)]
    stand_in = types.ModuleType("datasets")
    stand_in.load_dataset = lambda *_, **__: iter(pages)
    usual = sys.argv, sys.modules.get("datasets"), fineweb.SHARD_TOKENS
    sys.argv = ["fineweb.py", "-out", out, "-tokens", "bytes", "-shards", "3"]
    sys.modules["datasets"], fineweb.SHARD_TOKENS = stand_in, 200
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            fineweb.main()
        val, train = (texts(read_tokens(os.path.join(out, f"{name}_000000.bin")), BYTE_TABLE)
                      for name in ("val", "train"))
        whole = [page["text"].encode() for page in pages]
        report(val == whole[:4] and train == whole[4:4 + len(train)] and 10 < len(train) < 16,
               "fineweb.py", f"{len(val)} validation pages first, then {len(train)} for training")
        sys.modules["datasets"] = None                  # import datasets fails
        try:
            fineweb.main()
            report(False, "fineweb.py, no datasets", "")
        except DataError as error:
            report("pip install datasets" in str(error), "fineweb.py, no datasets",
                   "says what to install")
    finally:
        sys.argv, fineweb.SHARD_TOKENS = usual[0], usual[2]
        del sys.modules["datasets"]
        if usual[1]:
            sys.modules["datasets"] = usual[1]


def main():
    with tempfile.TemporaryDirectory() as folder:
        test_tokenizer(folder)
        test_pieces(folder)
        test_shards(os.path.join(folder, "shards"))
        test_tokenizer_file(folder)
        test_split()
        corpus, out, poem = test_text(folder)
        test_bad_input(folder, corpus, out, poem)
        test_quickstart(folder, corpus)
        test_sources(folder)
        test_debian(folder)
        test_fineweb(folder)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
