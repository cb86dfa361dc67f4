"""
The six novels of Jane Austen from a Debian package: a small, clean English text for machines that
reach a Debian or Ubuntu mirror but not the rest of the internet.

    python3 data/austen.py [-tokens bytes|gpt2] [-out DIR]

source      Debian package r-cran-janeaustenr (1.6 MB to download), unpacked in a temporary folder;
            nothing is installed, no root and no R needed
license     package MIT, texts public domain (Project Gutenberg's transcriptions)
size        4.0 MB of text: 4.0M byte tokens (the default) or 993 thousand GPT-2 tokens
documents   one per book; Persuasion is the validation text
"""
import os
import struct
import tempfile
import zlib

from common import (DataError, add_token_flags, debian_unpack, folder_beside_scripts, make_parser,
                    run)
from token_files import Document, dataset_in_folder, write_documents
from tokenizer import make_tokenizer

PACKAGE = "r-cran-janeaustenr"
DATABASE = "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb"
VALIDATION_BOOK = "Persuasion"
R_CHARACTER_VECTOR = 16


def main():
    parser = make_parser(__doc__)
    parser.add_argument("-out", default=folder_beside_scripts("austen"), metavar="DIR",
                        help="folder to write to (default data/austen)")
    add_token_flags(parser, tokens="bytes")
    args = parser.parse_args()
    tokenizer = make_tokenizer(args.tokens, args.ranks)
    write_documents(dataset_in_folder(args.out, tokenizer), austen_documents(), args.workers,
                    austen_source())


def austen_source():
    return f"six novels of Jane Austen (Debian package {PACKAGE})"


def austen_documents():
    """The books, one document each."""
    with tempfile.TemporaryDirectory() as folder:
        debian_unpack(PACKAGE, folder)
        with open(os.path.join(folder, DATABASE), "rb") as file:
            database = file.read()
    documents = []
    for record in r_records(database):
        lines = r_character_vector(record)
        title = next(line for line in lines if line).decode().title()
        documents.append(Document(title, text=b"\n".join(lines) + b"\n",
                                  validation=title == VALIDATION_BOOK))
    return documents


# R keeps the data sets of a package in one file, one record after the other:
#
#   bytes    content
#   4        size of the record once decompressed, big-endian
#   to end   a zlib stream
def r_records(database):
    while database:
        stream = zlib.decompressobj()
        try:
            record = stream.decompress(database[4:])
        except zlib.error as error:
            raise DataError(f"{DATABASE} is not in the expected format: {error}") from None
        if not stream.eof or len(record) != int.from_bytes(database[:4], "big"):
            raise DataError(f"{DATABASE} is not in the expected format: a wrong record size")
        yield record
        database = stream.unused_data


# A record is an R object in XDR form; all numbers are big-endian 32-bit integers:
#
#   "X\n", format version 2 or 3, version of the writer, oldest version of a reader
#   version 3 only: length and name of the encoding
#   flags (low byte 16: character vector), number of strings
#   per string: flags, length (-1: missing), bytes
def r_character_vector(record):
    """The strings of an R character vector, as bytes."""
    def number():
        nonlocal position
        position += 4
        return struct.unpack_from(">i", record, position - 4)[0]

    position = 2
    version, _, _ = number(), number(), number()
    if version == 3:
        encoding_bytes = number()
        position += encoding_bytes
    if record[:2] != b"X\n" or number() & 0xff != R_CHARACTER_VECTOR:
        raise DataError(f"{DATABASE} is not in the expected format: not a vector of strings")
    strings = []
    for _ in range(number()):
        number()
        length = max(number(), 0)
        strings.append(record[position:position + length])
        position += length
    return strings


if __name__ == "__main__":
    run(main)
