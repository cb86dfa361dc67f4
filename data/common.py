"""
What every script of this folder uses: error messages, progress, downloads, safe writing of files
and the flags that several of them have. Python 3.9 or later, standard library only.
"""
import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures.process import BrokenProcessPool


# ------------------------------------------------------------------------------------------------
# Errors and progress

class DataError(Exception):
    """A message for the user: what is wrong and what to do about it."""


def run(main):
    """Runs a script's main function; errors end it with one clear line and status 1."""
    try:
        main()
    except (DataError, OSError) as error:
        sys.exit(f"error: {error}")
    except BrokenProcessPool:
        sys.exit("error: a process was ended, probably for lack of memory; try fewer: -workers 1")
    except KeyboardInterrupt:
        sys.exit("interrupted; files of earlier runs are unchanged")


class Progress:
    """One line that rewrites itself on a terminal; elsewhere a plain line every ten seconds."""

    def __init__(self, label, total, unit="MB", scale=1e6):
        self.label, self.total, self.unit, self.scale = label, total, unit, scale
        self.done, self.start = 0, time.monotonic()
        self.terminal = sys.stdout.isatty()
        self.printed = self.start

    def add(self, amount):
        self.done += amount
        now = time.monotonic()
        if now - self.printed >= (0.1 if self.terminal else 10.0):
            self.printed = now
            self.show()

    def show(self, finished=False):
        seconds = time.monotonic() - self.start
        speed = self.done / max(seconds, 1e-3)
        line = f"{self.label}  {self.done / self.scale:.1f} {self.unit}"
        if self.total:
            line += f"  {100 * self.done / self.total:5.1f} %"
        line += f"  {speed / self.scale:.1f} {self.unit}/s"
        if finished:
            line += f"  {seconds:.1f} s"
        elif self.total:
            left = (self.total - self.done) / max(speed, 1e-9)
            line += f"  {left // 60:.0f}:{left % 60:02.0f} left"
        if self.terminal:
            print(f"\r{line}\x1b[K", end="\n" if finished else "", flush=True)
        else:
            print(line, flush=True)

    def finish(self):
        self.show(finished=True)


# ------------------------------------------------------------------------------------------------
# Getting things

def download(url, path, sha256=None):
    """Fetches a public file over https, checked and under a temporary name until complete."""
    temporary = path + ".tmp"
    try:
        with urllib.request.urlopen(url, timeout=30) as source, open(temporary, "wb") as out:
            progress = Progress(f"download {os.path.basename(path)}",
                                int(source.headers.get("Content-Length") or 0))
            for block in iter(lambda: source.read(1 << 20), b""):
                out.write(block)
                progress.add(len(block))
            progress.finish()
        if progress.total and progress.done != progress.total:
            raise DataError(f"{url} ended after {progress.done} of {progress.total} bytes; "
                            "run the same command again")
        if sha256 and file_sha256(temporary) != sha256:
            raise DataError(f"{url} is not the file that this script knows (its SHA-256 differs)")
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"cannot download {url}: {error}") from None
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)


def file_sha256(path):
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def debian_unpack(package, folder):
    """Downloads a Debian or Ubuntu package and unpacks it below folder. Nothing is installed and no
    root is needed: where the machine's package lists are missing, private ones are fetched."""
    for tool in ("apt-get", "dpkg-deb"):
        if not shutil.which(tool):
            raise DataError(f"{tool} not found: package {package} needs Debian or Ubuntu")
    with tempfile.TemporaryDirectory() as work:
        os.makedirs(f"{work}/lists/partial")
        private = ["-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
        quiet = ["-qq", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=2"]

        def apt_get(*arguments):
            return subprocess.run(["apt-get", *quiet, *arguments], cwd=work, text=True,
                                  stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)

        print(f"download Debian package {package}", flush=True)
        result = apt_get("download", package)
        if result.returncode != 0:
            apt_get(*private, "update")
            result = apt_get(*private, "download", package)
        archives = [name for name in os.listdir(work) if name.endswith(".deb")]
        if result.returncode != 0 or not archives:
            raise DataError(f"apt-get cannot download {package}: {result.stderr.strip()}")
        subprocess.run(["dpkg-deb", "-x", f"{work}/{archives[0]}", folder], check=True)


# ------------------------------------------------------------------------------------------------
# Writing files

def sync_and_close(file):
    file.flush()
    os.fsync(file.fileno())
    file.close()


def write_file(path, content):
    """Writes a small file under a temporary name and renames it."""
    with open(path + ".tmp", "wb") as file:
        file.write(content)
        sync_and_close(file)
    os.replace(path + ".tmp", path)


# ------------------------------------------------------------------------------------------------
# Flags that several scripts have

def make_parser(description, epilog=None):
    """A parser whose -h shows the script's docstring as it is written."""
    return argparse.ArgumentParser(description=description, epilog=epilog, allow_abbrev=False,
                                   formatter_class=argparse.RawDescriptionHelpFormatter)


def add_token_flags(parser, tokens="gpt2"):
    parser.add_argument("-tokens", choices=("gpt2", "bytes"), default=tokens,
                        help=f"what a token is (default {tokens})")
    parser.add_argument("-ranks", metavar="FILE", help="GPT-2's vocabulary in tiktoken's format "
                        "(default: data/gpt2.tiktoken, downloaded when it is missing)")
    parser.add_argument("-workers", type=positive, default=cores(), metavar="N",
                        help="processes (default: one per core)")


def folder_beside_scripts(name):
    """Where a source's files go unless -out says otherwise: data/NAME."""
    return os.path.relpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), name))


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def positive(text):
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def fraction(text):
    value = float(text)
    if not 0.0 < value < 1.0:
        raise ValueError
    return value
