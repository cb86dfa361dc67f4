"""
Tiny Shakespeare, the small text that char-rnn, nanoGPT and llm.c start with.

    python3 data/tinyshakespeare.py [-tokens gpt2|bytes] [-out DIR]

source      github.com/karpathy/char-rnn, data/tinyshakespeare/input.txt (1.1 MB to download)
license     public domain
size        1,115,394 bytes; 338,025 GPT-2 tokens (the default) or as many byte tokens as bytes
documents   two: the first 90 % for training, the last 10 % for validation, nanoGPT's division
"""
import os

from common import add_token_flags, download, folder_beside_scripts, make_parser, run
from token_files import Document, dataset_in_folder, write_documents
from tokenizer import make_tokenizer

URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"


def main():
    parser = make_parser(__doc__)
    parser.add_argument("-out", default=folder_beside_scripts("tinyshakespeare"), metavar="DIR",
                        help="folder to write to (default data/tinyshakespeare)")
    add_token_flags(parser)
    args = parser.parse_args()
    tokenizer = make_tokenizer(args.tokens, args.ranks)
    write_documents(dataset_in_folder(args.out, tokenizer), tinyshakespeare_documents(),
                    args.workers, tinyshakespeare_source())


def tinyshakespeare_source():
    return "Tiny Shakespeare (github.com/karpathy/char-rnn)"


def tinyshakespeare_documents():
    """Training text and validation text; the download is kept in data/tinyshakespeare/input.txt."""
    folder = folder_beside_scripts("tinyshakespeare")
    path = os.path.join(folder, "input.txt")
    if not os.path.exists(path):
        os.makedirs(folder, exist_ok=True)
        download(URL, path, SHA256)
    size = os.path.getsize(path)
    middle = size * 9 // 10
    return [Document("training", path, 0, middle),
            Document("validation", path, middle, size, validation=True)]


if __name__ == "__main__":
    run(main)
