"""
Documents go in, token files come out: the order of the documents, the validation split, tokenizing
on all cores and the files themselves, which README.md draws byte by byte.

A document is a name and some text. Its name decides, through a hash, where it stands in the order
and whether it belongs to the validation set; so both stay the same when other documents come or go.
Every document begins with an end-of-text token.

Nothing appears under its final name before all of it has been written: a run that is interrupted
leaves the files of the previous one as they were.
"""
import array
import collections
import contextlib
import hashlib
import json
import math
import mmap
import multiprocessing
import os
import re
import signal
import struct
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple, Optional

from common import DataError, Progress, sync_and_close, write_file
from tokenizer import make_tokenizer

HEADER_BYTES = 1024
TOKENS_MAGIC, TOKENS_VERSION = 20240520, 1
TOKENIZER_MAGIC, TOKENIZER_VERSION = 20240328, 2
SHARD_TOKENS = 100_000_000              # 200 MB a file, as llm.c's FineWeb shards
SMALLEST_SHARD = 65_536                 # a remainder smaller than this joins the shard before it
PIECE_BYTES = 1 << 20                   # long documents are tokenized in pieces of about this size


# ------------------------------------------------------------------------------------------------
# Documents

class Document(NamedTuple):
    """Text with a name: either bytes start..stop of a file, or held in memory."""
    name: str
    path: str = ""
    start: int = 0
    stop: int = 0
    text: Optional[bytes] = None
    validation: bool = False
    continues: bool = False             # a later piece of a long document: no end-of-text before it

    @property
    def size(self):
        return self.stop - self.start if self.text is None else len(self.text)

    def read(self):
        if self.text is not None:
            return self.text
        with open(self.path, "rb") as file:
            file.seek(self.start)
            return file.read(self.size)


def name_hash(name):
    """A number in [0, 1) that depends on nothing but the name."""
    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2.0**64


def shuffle_and_split(documents, fraction):
    """The documents in the order of their hashes. Those with a hash below fraction are validation;
    at least one is, and at least one is not."""
    documents = sorted(documents, key=lambda document: (name_hash(document.name), document.name))
    count = sum(name_hash(document.name) < fraction for document in documents)
    count = min(max(count, 1), len(documents) - 1)
    return [document._replace(validation=index < count) for index, document in enumerate(documents)]


# Between two printable ASCII characters a newline is always a GPT-2 word of its own, so tokenizing
# what lies before it and from it on gives exactly the tokens of the whole.
SAFE_CUT = re.compile(rb"[!-~](?=\n[!-~])")


def cut(document):
    """Pieces of a long document, cut where it does not change the tokens."""
    if document.size <= PIECE_BYTES:
        yield document
        return
    if document.text is None:
        with open(document.path, "rb") as file, \
                mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield from cut_at_newlines(document, data)
    else:
        yield from cut_at_newlines(document._replace(stop=document.size), document.text)


def cut_at_newlines(document, data):
    start = document.start
    while start < document.stop:
        match = SAFE_CUT.search(data, min(start + PIECE_BYTES, document.stop), document.stop)
        stop = match.end() if match else document.stop
        text = None if document.text is None else data[start:stop]
        yield document._replace(start=start, stop=stop, text=text, continues=start > document.start)
        start = stop


# ------------------------------------------------------------------------------------------------
# Tokenizing on all cores

def start_worker(tokens, ranks):
    global worker_tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)        # the parent reports the interruption
    worker_tokenizer = make_tokenizer(tokens, ranks)


def encode_batch(batch):
    return [encode_piece(worker_tokenizer, piece) for piece in batch]


def encode_piece(tokenizer, piece):
    """The tokens of a piece as little-endian uint16, as they stand in the file."""
    separator = b"" if piece.continues else struct.pack("<H", tokenizer.end_of_text)
    return separator + tokenizer.encode(piece.read())


def batches(pieces):
    """Groups of consecutive pieces that are worth sending to another process."""
    batch, size = [], 0
    for piece in pieces:
        batch.append(piece)
        size += piece.size
        if size >= PIECE_BYTES or len(batch) == 1000:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def encode(documents, tokenizer, workers):
    """Yields (piece, tokens) in the order of the documents, whatever the number of processes."""
    pieces = (piece for document in documents for piece in cut(document))
    if workers == 1 or tokenizer.name == "bytes":   # sending bytes to a process would take longer
        for piece in pieces:
            yield piece, encode_piece(tokenizer, piece)
        return
    waiting = collections.deque()                   # bounded, so that a stream is read as needed
    # spawn: a forked process could inherit a lock that a thread of a reading package holds
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"),
                               initializer=start_worker,
                               initargs=(tokenizer.name, tokenizer.ranks_path))
    try:
        for batch in batches(pieces):
            waiting.append((batch, pool.submit(encode_batch, batch)))
            if len(waiting) >= 4 * workers:
                yield from zip_result(*waiting.popleft())
        while waiting:
            yield from zip_result(*waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def zip_result(batch, future):
    return zip(batch, future.result())


# ------------------------------------------------------------------------------------------------
# Token files

class ShardWriter:
    """Writes tokens to files of at most shard_tokens each. NNNNNN in pattern stands for the number
    of the file. They have a temporary name until commit."""

    def __init__(self, pattern, shard_tokens):
        self.pattern, self.shard_tokens = pattern, shard_tokens
        self.counts = []                                # tokens in each shard
        self.file = None

    def path(self, index):
        return self.pattern.replace("NNNNNN", f"{index:06d}")

    def add(self, tokens):
        tokens = memoryview(tokens)
        while tokens:
            if not self.file or self.counts[-1] == self.shard_tokens:
                self.close()
                self.file = open(self.path(len(self.counts)) + ".tmp", "wb")
                self.file.write(bytes(HEADER_BYTES))    # filled in by close
                self.counts.append(0)
            room = 2 * (self.shard_tokens - self.counts[-1])
            self.file.write(tokens[:room])
            self.counts[-1] += len(tokens[:room]) // 2
            tokens = tokens[room:]

    def close(self):
        if self.file:
            header = struct.pack("<3i", TOKENS_MAGIC, TOKENS_VERSION, self.counts[-1])
            self.file.seek(0)
            self.file.write(header)
            sync_and_close(self.file)
            self.file = None

    def commit(self):
        """Gives the shards their names and removes those that an earlier, longer run left."""
        self.close()
        if len(self.counts) > 1 and self.counts[-1] < min(SMALLEST_SHARD, self.shard_tokens // 2):
            self.join_last()
        for index in range(len(self.counts)):
            os.replace(self.path(index) + ".tmp", self.path(index))
        index = len(self.counts)
        while "NNNNNN" in self.pattern and os.path.exists(self.path(index)):
            os.remove(self.path(index))
            index += 1
        return [self.path(index) for index in range(len(self.counts))]

    def join_last(self):
        """Appends the last shard to the one before: each must hold a row of training text."""
        last = self.path(len(self.counts) - 1) + ".tmp"
        with open(last, "rb") as file:
            file.seek(HEADER_BYTES)
            tokens = file.read()
        os.remove(last)
        self.counts[-2:] = [self.counts[-2] + self.counts[-1]]
        self.file = open(self.path(len(self.counts) - 1) + ".tmp", "r+b")
        self.file.seek(0, os.SEEK_END)
        self.file.write(tokens)
        self.close()

    def discard(self):
        if self.file:
            self.file.close()
        for index in range(len(self.counts)):
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.path(index) + ".tmp")


def tokenizer_file(tokenizer):
    """The content of tokenizer.bin: what each token stands for, for decoding."""
    header = struct.pack("<4i", TOKENIZER_MAGIC, TOKENIZER_VERSION, tokenizer.vocab_size,
                         tokenizer.end_of_text)
    body = b"".join(bytes([len(token)]) + token for token in tokenizer.token_bytes())
    return header.ljust(HEADER_BYTES, b"\0") + body


def unigram_entropy(paths):
    """Nats per token when nothing but each token's frequency is known: the loss of a model that has
    not learned to look at the preceding tokens."""
    counts = collections.Counter()
    for path in paths:
        tokens = array.array("H")
        with open(path, "rb") as file:
            file.seek(HEADER_BYTES)
            tokens.frombytes(file.read())
        if sys.byteorder == "big":
            tokens.byteswap()
        counts.update(tokens)
    total = sum(counts.values())
    return -sum(count / total * math.log(count / total) for count in counts.values())


class Dataset:
    """The files of one data set: training shards, validation shards, tokenizer.bin for decoding and
    a summary in JSON. Use it in a with statement; what is not committed is removed."""

    def __init__(self, tokenizer, train, val, summary, tokenizer_bin=None,
                 shard_tokens=SHARD_TOKENS):
        self.tokenizer, self.summary, self.tokenizer_bin = tokenizer, summary, tokenizer_bin
        self.train, self.val = ShardWriter(train, shard_tokens), ShardWriter(val, shard_tokens)
        self.documents = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.train.discard()
        self.val.discard()

    def add(self, piece, tokens, validation):
        (self.val if validation else self.train).add(tokens)
        self.documents += not piece.continues

    def commit(self, source):
        """source: one line about where the text comes from."""
        for writer, what in ((self.train, "training"), (self.val, "validation")):
            if not writer.counts:
                raise DataError(f"no text left for {what}; give more documents")
        with contextlib.suppress(FileNotFoundError):    # the summary vouches for the rest: last
            os.remove(self.summary)
        train, val = self.train.commit(), self.val.commit()
        if self.tokenizer_bin:
            write_file(self.tokenizer_bin, tokenizer_file(self.tokenizer))
        summary = {
            "source": source,
            "tokens": self.tokenizer.name,
            "vocab_size": self.tokenizer.vocab_size,
            "documents": self.documents,
            "train_tokens": sum(self.train.counts),
            "val_tokens": sum(self.val.counts),
            "val_unigram_entropy": round(unigram_entropy(val), 6),
        }
        write_file(self.summary, (json.dumps(summary, indent=4) + "\n").encode())
        print(f"source      {source}")
        print(f"vocabulary  {summary['vocab_size']} ({summary['tokens']}), end-of-text is "
              f"{self.tokenizer.end_of_text}")
        for label, paths, count in (("training", train, summary["train_tokens"]),
                                    ("validation", val, summary["val_tokens"])):
            name = paths[0] if len(paths) == 1 else f"{paths[0]} .. {os.path.basename(paths[-1])}"
            print(f"{label:<11} {count:,} tokens  {name}")
        print(f"unigram entropy of the validation text: {summary['val_unigram_entropy']:.4f} nats "
              "per token")
        return summary


def dataset_in_folder(folder, tokenizer, shard_tokens=SHARD_TOKENS):
    """A data set in a folder of its own, with numbered shards."""
    if not 1 <= shard_tokens < 2**31:
        raise DataError(f"a shard holds 1 to {2**31 - 1} tokens, not {shard_tokens}")
    os.makedirs(folder, exist_ok=True)
    return Dataset(tokenizer, os.path.join(folder, "train_NNNNNN.bin"),
                   os.path.join(folder, "val_NNNNNN.bin"), os.path.join(folder, "data.json"),
                   os.path.join(folder, "tokenizer.bin"), shard_tokens)


def write_documents(dataset, documents, workers, source):
    """Tokenizes documents, each marked as training or validation, into the dataset's files."""
    with dataset:
        progress = Progress("tokenize", sum(document.size for document in documents))
        for piece, tokens in encode(documents, dataset.tokenizer, workers):
            dataset.add(piece, tokens, piece.validation)
            progress.add(piece.size)
        progress.finish()
        return dataset.commit(source)
