"""
Your own text to token files that the trainers read.

    python3 data/text.py FILE_OR_FOLDER ... -out DIR

writes DIR/train_000000.bin ..., DIR/val_000000.bin ..., DIR/tokenizer.bin and DIR/data.json, for

    ./train_gpt2_fp32 -i "DIR/train_*.bin" -j "DIR/val_*.bin" ...

A file is a document, unless it contains the separator (-separator, default <|endoftext|>), which
divides it into several. In folders, hidden files and files that are not UTF-8 text are left out,
and so are exact duplicates of another file. Documents are shuffled by the hash of their names.
Those with the lowest hashes, about one in a hundred (-val) and at least one, become the validation
set, so no text is cut in two; only of a single document the last tenth is the validation text.

Tokens are GPT-2's byte-pair encoding, or with -tokens bytes the bytes themselves, which need no
vocabulary file.
"""
import codecs
import hashlib
import mmap
import os
from concurrent.futures import ProcessPoolExecutor

from common import DataError, Progress, add_token_flags, fraction, make_parser, run
from token_files import (SHARD_TOKENS, Document, dataset_in_folder, shuffle_and_split,
                         write_documents)
from tokenizer import END_OF_TEXT, make_tokenizer


def main():
    parser = make_parser(__doc__)
    parser.add_argument("inputs", nargs="+", metavar="FILE_OR_FOLDER")
    parser.add_argument("-out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("-val", type=fraction, metavar="F", help="validation share (default 0.01 "
                        "of the documents, at least one; 0.1 of a single document)")
    parser.add_argument("-ext", metavar=".A,.B", help="only files with these endings, in folders")
    parser.add_argument("-separator", default=END_OF_TEXT.decode(), metavar="TEXT",
                        help="divides a file into documents (default <|endoftext|>; '' for none)")
    parser.add_argument("-shard", type=int, default=SHARD_TOKENS, metavar="N",
                        help=f"tokens a file (default {SHARD_TOKENS})")
    add_token_flags(parser)
    args = parser.parse_args()

    tokenizer = make_tokenizer(args.tokens, args.ranks)
    documents = find_documents(args.inputs, args.ext or "", args.separator, args.workers)
    write_documents(dataset_in_folder(args.out, tokenizer, args.shard), split(documents, args.val),
                    args.workers, "text of " + ", ".join(args.inputs))


def find_documents(inputs, extensions, separator, workers):
    """The documents of files and folders; extensions (".a,.b", or "" for all) select in folders."""
    files = []
    for path in inputs:
        if os.path.isdir(path):
            files += files_below(path, tuple(extensions.split(",")))
        elif os.path.exists(path):
            _, reason, _, _ = examine((os.path.basename(path), path), separator.encode())
            if reason:
                raise DataError(f"{path} is {reason}; text in another encoding can be converted, "
                                "for instance with: iconv -f latin1 -t utf-8 OLD > NEW")
            files.append((os.path.basename(path), path))
        else:
            raise DataError(f"no such file or folder: {path}")
    documents = examine_files(files, separator, workers)
    if not documents:
        raise DataError(f"no text found in {', '.join(inputs)}")
    return documents


def files_below(folder, endings=("",)):
    """(name, path) of the regular files below a folder, sorted. The name begins with the folder's
    own name, so it stays the same when the folder is moved."""
    files = []
    above = os.path.dirname(os.path.abspath(folder))
    for parent, folders, names in os.walk(os.path.abspath(folder)):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = os.path.join(parent, name)
            if (name.endswith(endings) and not name.startswith(".") and os.path.isfile(path)
                    and not os.path.islink(path)):
                files.append((os.path.relpath(path, above), path))
    return files


def examine_files(files, separator, workers):
    """Reads all files once, on all cores, and returns the documents of those that are text and not
    a duplicate. Says how many were left out."""
    left_out, seen, documents = {}, set(), []
    progress = Progress("examine", len(files), "files", 1)
    with ProcessPoolExecutor(workers) as pool:
        separators = [separator.encode()] * len(files)
        for file, reason, digest, ranges in pool.map(examine, files, separators,
                                                     chunksize=1 + min(100, len(files) // workers)):
            progress.add(1)
            if not reason and digest in seen:
                reason = "a duplicate"
            if reason:
                left_out[reason] = left_out.get(reason, 0) + 1
                continue
            seen.add(digest)
            name, path = file
            for index, (start, stop) in enumerate(ranges):
                documents.append(Document(f"{name}#{index}" if index else name, path, start, stop))
    progress.finish()
    size = sum(document.size for document in documents)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()))
    print(f"{len(documents)} documents, {size / 1e6:.1f} MB; left out: {reasons or 'none'}")
    return documents


def examine(file, separator):
    """(file, reason to leave it out or None, digest of its content, [(start, stop), ...])"""
    try:
        with open(file[1], "rb") as opened:
            if os.fstat(opened.fileno()).st_size == 0:
                return file, "empty", None, []
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
                if data.find(b"\0") >= 0:
                    return file, "not text", None, []
                decoder = codecs.getincrementaldecoder("utf-8")()
                for start in range(0, len(data), 1 << 20):
                    decoder.decode(data[start:start + (1 << 20)], start + (1 << 20) >= len(data))
                digest = hashlib.blake2b(data, digest_size=16).digest()
                return file, None, digest, divide(data, separator)
    except UnicodeDecodeError:
        return file, "not UTF-8", None, []
    except OSError:
        return file, "not readable", None, []


def divide(data, separator):
    """The documents between separators, without the white space around them."""
    if not separator or data.find(separator) < 0:
        return [(0, len(data))]
    ranges, start = [], 0
    while start < len(data):
        found = data.find(separator, start)
        stop = found if found >= 0 else len(data)
        text = data[start:stop]
        first = start + len(text) - len(text.lstrip())
        last = start + len(text.rstrip())
        if first < last:
            ranges.append((first, last))
        start = stop + len(separator)
    return ranges


def split(documents, share):
    """Marks the validation documents; a single document is divided at the end of a line instead."""
    if len(documents) > 1:
        return shuffle_and_split(documents, share or 0.01)
    document = documents[0]
    with open(document.path, "rb") as file, \
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        wanted = document.start + int(document.size * (1.0 - (share or 0.1)))
        middle = data.find(b"\n", wanted, document.stop - 1) + 1
    if not middle:
        raise DataError(f"{document.path} is one document, and there is no end of a line where its "
                        "validation text could begin; give more text")
    print("one document only: its last part is the validation text")
    return [document._replace(stop=middle),
            document._replace(name=document.name + "#validation", start=middle, validation=True)]


if __name__ == "__main__":
    run(main)
