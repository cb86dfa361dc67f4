"""
FineWeb: filtered web text, the data on which llm.c reproduces GPT-2 (Penedo et al., arXiv
2406.17557).

    pip install datasets tiktoken
    python3 data/fineweb.py [-version 10B|100B] [-edu] [-shards N] [-out DIR]

source      huggingface.co, datasets HuggingFaceFW/fineweb and HuggingFaceFW/fineweb-edu, samples
            sample-10BT (28 GB to download) and sample-100BT; read as a stream
license     ODC-By 1.0
size        10 or 100 billion GPT-2 tokens: 20 or 200 GB; -shards N stops after N * 100M
documents   one per web page, in the order of the sample; the first 100M tokens, up to the end of a
            page, are the validation set, as in llm.c

Shards that llm.c's dev/data/fineweb.py wrote have the same format and can be used as they are.
"""

from common import (DataError, Progress, add_token_flags, folder_beside_scripts, make_parser,
                    positive, run)
from token_files import SHARD_TOKENS, Document, dataset_in_folder, encode
from tokenizer import make_tokenizer


def main():
    parser = make_parser(__doc__)
    parser.add_argument("-version", choices=("10B", "100B"), default="10B", help="which sample")
    parser.add_argument("-edu", action="store_true", help="FineWeb-EDU instead of FineWeb")
    parser.add_argument("-shards", type=positive, metavar="N", help="stop after N training shards")
    parser.add_argument("-out", metavar="DIR", help="folder (default data/fineweb10B etc.)")
    add_token_flags(parser)
    args = parser.parse_args()

    name = "HuggingFaceFW/fineweb" + ("-edu" if args.edu else "")
    folder = args.out or folder_beside_scripts(f"{'edu_' if args.edu else ''}fineweb{args.version}")
    wanted = args.shards * SHARD_TOKENS if args.shards else None
    expected = wanted + SHARD_TOKENS if wanted else 1e10 if args.version == "10B" else 1e11
    pages = read_pages(name, f"sample-{args.version}T")
    tokenizer = make_tokenizer(args.tokens, args.ranks)
    with dataset_in_folder(folder, tokenizer) as dataset:
        progress = Progress("tokenize", expected, "M tokens")
        in_validation = True
        for piece, tokens in encode(pages, tokenizer, args.workers):
            if not piece.continues:
                in_validation = sum(dataset.val.counts) < SHARD_TOKENS
                if wanted and sum(dataset.train.counts) >= wanted:
                    break
            dataset.add(piece, tokens, in_validation)
            progress.add(len(tokens) // 2)
        progress.finish()
        dataset.commit(f"huggingface dataset {name}, sample-{args.version}T")


def read_pages(name, sample):
    try:
        import datasets
    except ImportError:
        raise DataError("FineWeb is read with the package datasets, which is not installed; run\n"
                        "    pip install datasets tiktoken") from None
    try:
        stream = datasets.load_dataset(name, name=sample, split="train", streaming=True)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot open the huggingface dataset {name}: {error}") from None
    return (Document(page["id"], text=page["text"].encode()) for page in stream)


if __name__ == "__main__":
    run(main)
