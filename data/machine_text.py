"""
Text that this machine already holds: source files and documentation of its installed packages. For
machines without internet, a GPU server with a Python environment holds hundreds of MB.

    python3 data/machine_text.py -out DIR [-ranks gpt2.tiktoken] [-tokens gpt2|bytes]

source      .py .pyi .h .hpp .cuh .c .md .rst .pm .pod .pl .txt files of 400 bytes to 400 kB below
            /opt, /usr/lib, /usr/share, /usr/include and /usr/local; exact duplicates left out
license     that of each package; for use on this machine, not for passing on
size        61 thousand documents, 309M GPT-2 tokens on a machine with PyTorch and JAX
documents   one per file, shuffled; one in a hundred is validation (-val)

The text differs from machine to machine, and most of it is code: compare runs on one machine only.
With the tiktoken package and 32 cores it takes about 10 seconds, without tiktoken some minutes.
"""
import os

from common import DataError, add_token_flags, fraction, make_parser, run
from text import examine_files, files_below
from token_files import dataset_in_folder, shuffle_and_split, write_documents
from tokenizer import make_tokenizer

FOLDERS = "/opt,/usr/lib,/usr/share,/usr/include,/usr/local"
EXTENSIONS = (".py", ".pyi", ".h", ".hpp", ".cuh", ".c", ".md", ".rst", ".pm", ".pod", ".pl",
              ".txt")
SMALLEST, LARGEST = 400, 400_000        # bytes; beyond are stubs and generated tables


def main():
    parser = make_parser(__doc__)
    parser.add_argument("-out", required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("-folders", default=FOLDERS, metavar="A,B", help=f"default {FOLDERS}")
    parser.add_argument("-val", type=fraction, default=0.01, metavar="F",
                        help="share of the documents for validation (default 0.01)")
    add_token_flags(parser)
    args = parser.parse_args()

    tokenizer = make_tokenizer(args.tokens, args.ranks)
    files = []
    for folder in args.folders.split(","):
        files += [(name, path) for name, path in files_below(folder, EXTENSIONS)
                  if SMALLEST <= os.path.getsize(path) <= LARGEST]
    documents = examine_files(files, "", args.workers) if files else []
    if len(documents) < 2:
        raise DataError(f"fewer than two text files below {args.folders}; see -folders")
    write_documents(dataset_in_folder(args.out, tokenizer),
                    shuffle_and_split(documents, args.val), args.workers,
                    f"installed packages of this machine ({args.folders})")


if __name__ == "__main__":
    run(main)
