"""
TinyStories: two million short stories in the words of a small child, written by GPT-3.5 and GPT-4
(Eldan and Li, arXiv 2305.07759).

    python3 data/tinystories.py [-tokens gpt2|bytes] [-out DIR]

source      huggingface.co, dataset roneneldan/TinyStories, TinyStories_all_data.tar.gz (1.6 GB to
            download, kept in data/tinystories)
license     CDLA-Sharing 1.0
size        about 0.9 billion GPT-2 tokens
documents   one per story; the first of the archive's 50 files is the validation set, as in llm.c
"""
import json
import os
import tarfile

from common import (DataError, Progress, add_token_flags, download, folder_beside_scripts,
                    make_parser, run)
from token_files import Document, dataset_in_folder, encode
from tokenizer import make_tokenizer

URL = ("https://huggingface.co/datasets/roneneldan/TinyStories/resolve/main/"
       "TinyStories_all_data.tar.gz")
VALIDATION_FILE = "data00.json"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("-out", default=folder_beside_scripts("tinystories"), metavar="DIR",
                        help="folder to write to (default data/tinystories)")
    parser.add_argument("-archive", metavar="FILE", help="the archive, if you have it already")
    add_token_flags(parser)
    args = parser.parse_args()

    tokenizer = make_tokenizer(args.tokens, args.ranks)
    archive = args.archive or folder_beside_scripts("tinystories/TinyStories_all_data.tar.gz")
    if not os.path.exists(archive):
        os.makedirs(os.path.dirname(archive) or ".", exist_ok=True)
        download(URL, archive)
    with open(archive, "rb") as file, dataset_in_folder(args.out, tokenizer) as dataset:
        progress = Progress("tokenize (compressed)", os.path.getsize(archive))
        for piece, tokens in encode(stories(file, archive), tokenizer, args.workers):
            dataset.add(piece, tokens, piece.validation)
            progress.add(file.tell() - progress.done)
        progress.finish()
        dataset.commit("TinyStories (huggingface dataset roneneldan/TinyStories)")


def stories(file, archive):
    """The stories as the archive is read: one JSON list in each of its files."""
    try:
        with tarfile.open(fileobj=file, mode="r|gz") as tar:
            for member in tar:
                name = os.path.basename(member.name)
                # names that begin with a dot are a macOS habit: attributes of the file of that name
                if not name.endswith(".json") or name.startswith("."):
                    continue
                for index, example in enumerate(json.load(tar.extractfile(member))):
                    yield Document(f"{name}#{index}", text=example["story"].strip().encode(),
                                   validation=name == VALIDATION_FILE)
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise DataError(f"{archive} is damaged ({error}); delete it and run again") from None


if __name__ == "__main__":
    run(main)
