"""
The text of the quick start, as byte tokens: what `make run` calls.

    python3 data/quickstart.py                        the default text
    python3 data/quickstart.py -text FILE_OR_FOLDER   your own

The default is the first of these that can be had: what an earlier run wrote; Jane Austen's novels
from a Debian package (austen.py); Tiny Shakespeare by https (tinyshakespeare.py).

Writes data/quickstart_train.bin, data/quickstart_val.bin and data/quickstart.json, whose
val_unigram_entropy is the loss that a model must beat to have learned more than how frequent each
byte is. Tokens 0 to 255 are the bytes, 256 is end-of-text: the vocabulary has 257 tokens, and no
tokenizer file is needed.
"""
import json
import os

from austen import austen_documents, austen_source
from common import DataError, cores, folder_beside_scripts, fraction, make_parser, run
from text import find_documents, split
from tinyshakespeare import tinyshakespeare_documents, tinyshakespeare_source
from token_files import Dataset, write_documents
from tokenizer import END_OF_TEXT, ByteTokenizer


def main():
    parser = make_parser(__doc__)
    parser.add_argument("-text", metavar="FILE_OR_FOLDER", help="your own text, not the default")
    parser.add_argument("-val", type=fraction, metavar="F", help="its validation share (text.py)")
    parser.add_argument("-out", default=folder_beside_scripts(""), metavar="DIR",
                        help="folder to write to (default data)")
    args = parser.parse_args()

    os.makedirs(args.out, exist_ok=True)
    train, val, summary = (os.path.join(args.out, name) for name in
                           ("quickstart_train.bin", "quickstart_val.bin", "quickstart.json"))
    if not args.text and all(os.path.exists(path) for path in (train, val, summary)):
        report_existing(summary)
        return
    documents, source = own_text(args) if args.text else default_text()
    # without a numbered shard to fill, the whole text goes into one file
    dataset = Dataset(ByteTokenizer(), train, val, summary, shard_tokens=2**31 - 1)
    write_documents(dataset, documents, 1, source)


def report_existing(path):
    with open(path, encoding="utf-8") as file:
        summary = json.load(file)
    print(f"text of an earlier run: {summary['source']}, {summary['train_tokens']:,} training and "
          f"{summary['val_tokens']:,} validation tokens, unigram entropy "
          f"{summary['val_unigram_entropy']:.4f} nats per token")


def own_text(args):
    documents = find_documents([args.text], "", END_OF_TEXT.decode(), cores())
    return split(documents, args.val), f"text of {args.text}"


def default_text():
    """(documents, source) of the first source that can be reached."""
    for documents, source in ((austen_documents, austen_source),
                              (tinyshakespeare_documents, tinyshakespeare_source)):
        try:
            return documents(), source()
        except DataError as error:
            print(f"not available: {error}", flush=True)
    raise DataError("no text to train on: neither a Debian mirror nor the internet is in reach.\n"
                    "Any text of yours will do, a file or a folder, best a few MB or more:\n"
                    "    python3 data/quickstart.py -text FILE_OR_FOLDER\n"
                    "then run the same command again. For larger runs: python3 data/text.py -h")


if __name__ == "__main__":
    run(main)
