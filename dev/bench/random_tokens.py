"""
Writes a token file of random tokens, for measuring speed where no text is needed:

    python3 random_tokens.py VOCABULARY COUNT PATH

The format is that of data/README.md: 256 int32 (magic 20240520, version 1, count), then uint16
tokens.
"""
import array
import random
import struct
import sys


def main():
    if len(sys.argv) != 4:
        sys.exit("usage: python3 random_tokens.py VOCABULARY COUNT PATH")
    vocabulary, count, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    draw = random.Random(1337)
    tokens = array.array("H", (int(vocabulary * draw.random()) for _ in range(count)))
    with open(path, "wb") as file:
        file.write(struct.pack("<3i", 20240520, 1, count).ljust(1024, b"\0") + tokens.tobytes())


main()
