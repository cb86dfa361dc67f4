"""
Text to tokens: plain bytes, or the byte-pair encoding of GPT-2.

Byte tokens need no vocabulary: tokens 0 to 255 are the bytes, 256 is end-of-text.

GPT-2's encoding first splits the text into words (a space belongs to the word that follows it),
then takes each word's bytes and repeatedly joins the two neighbours that the vocabulary ranks
first, until no neighbours can be joined. The rank is the token id, so the vocabulary file says
everything: one line per token, its bytes in base64 and its id ("r50k_base" in OpenAI's naming, MIT
license). There are 50256, and end-of-text follows them as 50256.

The package tiktoken (pip install tiktoken) encodes several times as fast; it is given the same file
and downloads nothing. Without it the code below gives the same tokens.
"""
import array
import base64
import glob
import hashlib
import heapq
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import unicodedata

from common import DataError, download, file_sha256, write_file

GPT2_RANKS_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
GPT2_RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
END_OF_TEXT = b"<|endoftext|>"


def make_tokenizer(tokens, ranks_path=None):
    return ByteTokenizer() if tokens == "bytes" else Gpt2Tokenizer(ranks_path)


def uint16_bytes(ids):
    """Little-endian, as in the token files."""
    numbers = array.array("H", ids)
    if sys.byteorder == "big":
        numbers.byteswap()
    return numbers.tobytes()


class ByteTokenizer:
    name, ranks_path = "bytes", None
    vocab_size, end_of_text = 257, 256

    def encode(self, data):
        tokens = bytearray(2 * len(data))
        tokens[0::2] = data                     # the low bytes; the high bytes are zero
        return bytes(tokens)

    def token_bytes(self):
        return [bytes([byte]) for byte in range(256)] + [END_OF_TEXT]


class Gpt2Tokenizer:
    name = "gpt2"

    def __init__(self, ranks_path=None, use_tiktoken=True):
        self.ranks_path = ranks_path or obtain_ranks()
        self.ranks = load_ranks(self.ranks_path)
        self.end_of_text = len(self.ranks)      # 50256
        self.vocab_size = len(self.ranks) + 1
        self.encode_ids = self.make_tiktoken() if use_tiktoken else None
        if not self.encode_ids:
            self.words = word_pattern()
            self.cache = {}
            self.encode_ids = self.encode_ids_python

    def make_tiktoken(self):
        try:
            import tiktoken
        except ImportError:
            return None
        pattern = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
        encoding = tiktoken.Encoding("gpt2", pat_str=pattern, mergeable_ranks=self.ranks,
                                     special_tokens={END_OF_TEXT.decode(): self.end_of_text})
        return encoding.encode_ordinary

    def encode(self, data):
        return uint16_bytes(self.encode_ids(data.decode("utf-8", "replace")))

    def encode_ids_python(self, text):
        ids = []
        for word in self.words.findall(text):
            tokens = self.cache.get(word)
            if tokens is None:
                tokens = join_pairs(word.encode("utf-8"), self.ranks)
                if len(self.cache) < 1_000_000:
                    self.cache[word] = tokens
            ids.extend(tokens)
        return ids

    def token_bytes(self):
        return list(self.ranks) + [END_OF_TEXT]


def join_pairs(word, ranks):
    """The token ids of a word (bytes). Parts are known by where they start; a heap holds the pairs
    of neighbours that the vocabulary knows, best rank first, leftmost first among equals."""
    if word in ranks:
        return [ranks[word]]
    length = len(word)
    stop = list(range(1, length + 1))           # stop[start]: where the part that begins here ends
    before = list(range(-1, length))            # before[start]: where the part to its left begins
    heap = []

    def offer(start, end):
        rank = ranks.get(word[start:end])
        if rank is not None:
            heapq.heappush(heap, (rank, start, end))

    for start in range(length - 1):
        offer(start, start + 2)
    while heap:
        _, start, end = heapq.heappop(heap)
        middle = stop[start]
        if middle is None or middle >= end or stop[middle] != end:
            continue                            # one of the two has meanwhile been joined otherwise
        stop[start], stop[middle] = end, None
        if end < length:
            before[end] = start
            offer(start, stop[end])
        if start > 0:
            offer(before[start], end)
    return [ranks[word[start:end]] for start, end in enumerate(stop) if end is not None]


def word_pattern():
    """GPT-2's word pattern for the standard library's re, which knows neither \\p{L} (letters) nor
    \\p{N} (numbers): the classes are spelled out from Python's Unicode tables. \\s is Unicode's
    White_Space, not Python's, which also counts the four separators 1c to 1f."""
    space = r"\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
    letter, number = character_class("L"), character_class("N")
    return re.compile(f"'(?:[sdmt]|ll|ve|re)| ?[{letter}]+| ?[{number}]+"
                      f"| ?[^{space}{letter}{number}]+|[{space}]+(?![^{space}])|[{space}]+")


def character_class(category):
    """The characters of a Unicode category as the inside of a [...] pattern."""
    members = [code for code in range(0x110000) if unicodedata.category(chr(code))[0] == category]
    ranges = []
    for code in members:
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


# ------------------------------------------------------------------------------------------------
# The vocabulary file

def load_ranks(path):
    """{token bytes: id}, in the order of the ids."""
    try:
        with open(path, "rb") as file:
            content = file.read()
    except FileNotFoundError:
        raise DataError(f"no such file: {path}; -ranks wants GPT-2's vocabulary in tiktoken's "
                        f"format, {GPT2_RANKS_URL}") from None
    ranks = {}
    for number, line in enumerate(content.splitlines()):
        try:
            token, rank = line.split()
            token, rank = base64.b64decode(token, validate=True), int(rank)
        except ValueError:
            raise DataError(f"{path}, line {number + 1}: expected base64 and a number") from None
        if rank != number or token in ranks or not 1 <= len(token) <= 255:
            raise DataError(f"{path}, line {number + 1}: tokens must be distinct, 1 to 255 bytes "
                            "long and numbered from 0 without gaps")
        ranks[token] = rank
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing or len(ranks) > 65535:
        raise DataError(f"{path}: {len(ranks)} tokens, {len(missing)} of the 256 single bytes "
                        "missing; this is not a vocabulary for uint16 token files")
    return ranks


def obtain_ranks():
    """Path of GPT-2's vocabulary beside this script; fetched once, from OpenAI or, where only the
    Python package index can be reached, from the source archive of openai-whisper."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "gpt2.tiktoken")
    if os.path.exists(path):
        if file_sha256(path) != GPT2_RANKS_SHA256:
            raise DataError(f"{path} is damaged (its SHA-256 differs); delete it and run again")
        return path
    try:
        download(GPT2_RANKS_URL, path, GPT2_RANKS_SHA256)
        return path
    except DataError as error:
        print(f"{error}; trying pip", flush=True)
    content = ranks_from_pip()
    if hashlib.sha256(content).hexdigest() != GPT2_RANKS_SHA256:
        raise DataError("cannot obtain GPT-2's vocabulary. Download it elsewhere from\n"
                        f"    {GPT2_RANKS_URL}\n"
                        f"and name it with -ranks or put it at {path}; "
                        "or use byte tokens (-tokens bytes)")
    write_file(path, content)
    return path


def ranks_from_pip():
    """The vocabulary that the speech recognizer Whisper carries; b"" if pip cannot get it."""
    with tempfile.TemporaryDirectory() as work:
        subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--no-binary",
                        ":all:", "--dest", work, "openai-whisper"], stderr=subprocess.DEVNULL)
        for archive in glob.glob(os.path.join(work, "*.tar.gz")):
            with tarfile.open(archive) as tar:
                for member in tar:
                    if member.name.endswith("/whisper/assets/gpt2.tiktoken"):
                        return tar.extractfile(member).read()
    return b""
