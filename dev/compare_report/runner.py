"""Trains what a comparison still lacks: one run a GPU at a time, or one at a time on the CPU.

A run lies in OUT/RECIPE_seedSEED. One that is finished, or that ended because a number was not
finite, is not repeated; one that was interrupted goes on from its newest checkpoint (-y 1), which
the trainer checks. A log of other settings than asked for is an error, nothing is overwritten.
"""
import fcntl
import os
import re
import subprocess
import sys
import time

from run_log import ROOT, WITHOUT_EFFECT, ReportError, read_run

DEFAULT_LINE = re.compile(r"^  (-\w+) +", re.M)
STATUS_SECONDS = 30     # between two lines of progress where they go to a file; 1 on a terminal


class Job:
    """A run to be made; steps: its -x, if it is not that of the others."""

    def __init__(self, out, recipe, seed, flags, steps=None):
        self.recipe, self.seed, self.flags = recipe, seed, dict(flags)
        length = "" if steps is None else f"_x{steps}"
        if steps is not None:
            self.flags["-x"] = str(steps)
        self.directory = os.path.join(out, f"{recipe.replace('/', '_')}{length}_seed{seed}")
        self.title = os.path.basename(self.directory)
        self.process = self.lane = None

    def command(self, program):
        flags = dict(self.flags, **{"-p": self.recipe, "-seed": self.seed, "-o": self.directory,
                                    "-y": "1", "-pr": "0"})
        return [program, *(word for flag, value in flags.items() for word in (flag, str(value)))]


# -------------------------------------------------------------------------------------------------
# What to run, and on what

def gpu_indices():
    """The GPUs that this program may use, as CUDA_VISIBLE_DEVICES names them."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [gpu for gpu in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if gpu]
    try:
        found = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
                               text=True,
                               capture_output=True, timeout=60)
        return found.stdout.split() if found.returncode == 0 else []
    except (OSError, subprocess.TimeoutExpired):
        return []


def choose_program(program, gpus):
    """(path, lanes): the CUDA program and a lane a GPU where there are GPUs, else the C program and
    one lane, None."""
    lanes = gpus if gpus is not None else gpu_indices()
    if program is None:
        program = os.path.join(ROOT, "train_gpt2_nvfp4" if lanes else "train_gpt2_fp32")
    if not os.access(program, os.X_OK):
        raise ReportError(f"{program}: no such program; make {os.path.basename(program)} builds it")
    return os.path.abspath(program), lanes or [None]


def default_flags(program):
    """{flag: default} from the program's -h, whose defaults begin in the tenth column; {} if it
    prints no such table."""
    try:
        table = subprocess.run([program, "-h"], text=True, capture_output=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ReportError(f"{program} -h: {error}") from None
    lines = [line for line in table.split("\n") if DEFAULT_LINE.match(line)]
    return {line.split()[0]: line[9:].split(" ")[0] for line in lines if len(line) > 9}


def number_of_steps(flags):
    try:
        return int(flags.get("-x", -1))
    except ValueError:
        raise ReportError(f"-x {flags['-x']}: not a number of steps") from None


def complete_flags(flags, defaults):
    """The flags of every run: what was asked for, and evaluations and checkpoints if it was not
    said how often."""
    for name in flags:
        if name in ("-o", "-y", "-pr", "-p", "-seed"):
            raise ReportError(f"{name} cannot be given here")
        if defaults and name not in defaults:
            raise ReportError(f"the trainer has no flag {name}; its -h lists them")
    steps, flags = number_of_steps(flags), dict(flags)
    flags.setdefault("-v", str(max(1, steps // 20) if steps > 0 else 250))
    if "-n" not in flags:
        flags.update({"-n": str(max(1, steps // 5) if steps > 0 else 1000), "-nk": "1"})
    return flags


def same(a, b):
    """Whether two values of a flag are equal; numbers as numbers."""
    try:
        return abs(float(a) - float(b)) <= 1e-6 * abs(float(b))
    except ValueError:
        return str(a) == str(b)


def job_state(job, defaults):
    """"new", "begun", "finished" or "diverged"; an error if the log there has other settings."""
    if not os.path.exists(os.path.join(job.directory, "log.jsonl")):
        return "new"
    try:
        run = read_run(job.directory)
    except ReportError:
        return "new"            # killed before its first line was complete; the trainer keeps it
    wanted = dict(defaults, **job.flags, **{"-p": job.recipe, "-seed": job.seed})
    for name, value in run.flags.items():
        known = name in wanted and name not in WITHOUT_EFFECT
        if known and not same(value, wanted[name]):
            raise ReportError(f"{job.directory} has a run with {name} {value}, not {wanted[name]}: "
                              "choose another -o, or remove it")
    if run.finished:
        return "finished"
    return "diverged" if run.first_not_finite is not None else "begun"


# -------------------------------------------------------------------------------------------------
# Running

def lock(out, program="dev/compare"):
    """Keeps a second call of the program out of the same directory for as long as this one lives."""
    os.makedirs(out, exist_ok=True)
    file = open(os.path.join(out, ".lock"), "w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise ReportError(f"another {program} is at work in {out}") from None
    return file


def environment_of(lane):
    environment = dict(os.environ)
    environment.setdefault("GOMP_SPINCOUNT", "1000")        # dev/run.sh says why
    environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # numbers as nvidia-smi's
    if lane is not None:
        environment["CUDA_VISIBLE_DEVICES"] = lane
    return environment


def check_recipes(jobs, program, lane, defaults):
    """Ends with the trainer's message if it refuses one of the recipes, or a setting of all, by
    starting it for no update at all: better now than at a recipe's turn, hours later."""
    nothing = {flag: "0" for flag in ("-x", "-u", "-v", "-s", "-n", "-nk", "-nm") if flag in defaults}
    for job in {job.recipe: job for job in jobs}.values():
        flags = {**job.flags, **nothing, "-p": job.recipe, "-seed": job.seed, "-pr": "0"}
        words = [program, *(str(word) for flag in flags.items() for word in flag)]
        try:
            tried = subprocess.run(words, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                                   env=environment_of(lane))
        except OSError as error:
            raise ReportError(f"{program}: {error.strerror}") from None
        if tried.returncode != 0:
            said = (tried.stderr or tried.stdout).strip().split("\n")[-1]
            raise ReportError(f"{job.recipe} cannot be trained: {said.removeprefix('error: ')}")


def start(job, program, lane):
    os.makedirs(job.directory, exist_ok=True)
    with open(os.path.join(job.directory, "output.txt"), "a", encoding="utf-8") as output:
        job.process = subprocess.Popen(job.command(program), stdin=subprocess.DEVNULL,
                                       stdout=output, stderr=subprocess.STDOUT,
                                       env=environment_of(lane))
    job.lane = lane
    print(f"{job.title}: starts" + (f" on GPU {lane}" if lane is not None else ""), flush=True)


def last_line(path, begins=""):
    """The last line of a file that begins so; the last one if none does; "" without a file."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - 2000))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").strip().split("\n")
            return ([line for line in lines if line.startswith(begins)] or lines)[-1].strip()
    except OSError:
        return ""


def output_line(job):
    """The trainer's own line: step, percentage, time left, loss, tokens a second."""
    return last_line(os.path.join(job.directory, "output.txt"))


def finish(job):
    """True if the trainer has ended well; says how it ended."""
    status = job.process.wait()
    line = last_line(os.path.join(job.directory, "output.txt"), "step " if status == 0 else "")
    print(f"{job.title}: " + (line if status == 0 else f"ended with status {status}: {line}"),
          flush=True)
    return status == 0


def show(running, waiting):
    line = " || ".join(f"{job.title}: {output_line(job)}" for job in running)
    if sys.stdout.isatty():
        width = os.get_terminal_size().columns - 1
        print("\r" + line[:width].ljust(width), end="\r", flush=True)
    else:
        print(f"{line} || {waiting} waiting", flush=True)


def train(jobs, program, lanes):
    """Runs the jobs, each on a free lane; returns those that failed. The others are not held up by
    them."""
    waiting, running, failed = list(jobs), [], []
    next_status = time.monotonic() + STATUS_SECONDS
    try:
        while waiting or running:
            free = [lane for lane in lanes if lane not in [job.lane for job in running]]
            for lane in free[:len(waiting)]:
                running.append(waiting.pop(0))
                start(running[-1], program, lane)
            time.sleep(0.1)
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                if not finish(job):
                    failed.append(job)
            if running and (sys.stdout.isatty() or time.monotonic() > next_status):
                show(running, len(waiting))
                next_status = time.monotonic() + STATUS_SECONDS
    except OSError as error:
        raise ReportError(f"{error.filename or program}: {error.strerror}") from None
    finally:                # interrupted: no trainer is left behind
        for job in running:
            if job.process:
                job.process.terminate()
        for job in running:
            if job.process:
                job.process.wait()
    return failed


def run_all(out, recipes, seeds, flags, program, gpus, baseline, lengths):
    """Trains every recipe with every seed under `out`, and the baseline with `lengths`, shares of
    the number of steps, as well. Returns (directories, number that failed)."""
    program, lanes = choose_program(program, gpus)
    defaults = default_flags(program)
    flags = complete_flags(flags, defaults)
    # seeds outside: after the first seed every recipe can be compared
    jobs = [Job(out, recipe, seed, flags) for seed in seeds for recipe in recipes]
    steps = number_of_steps(flags)
    if lengths and steps < 0:
        raise ReportError("--lengths needs -x")
    warmup = flags.get("-u", "0")
    if lengths and warmup.isdecimal() and int(warmup) > max(1, round(min(lengths) * steps)):
        raise ReportError(f"-u {warmup} warmup steps are more than the shortest of --lengths, "
                          f"{max(1, round(min(lengths) * steps))} steps; -u is the same for all")
    jobs += [Job(out, baseline, seed, flags, max(1, round(share * steps)))
             for seed in seeds for share in lengths]
    if len({job.directory for job in jobs}) < len(jobs):
        raise ReportError("a recipe, a seed or a length is given twice")
    held = lock(out)
    states = {job: job_state(job, defaults) for job in jobs}
    for job, state in states.items():
        if state != "new":
            print(f"{job.title}: {'goes on' if state == 'begun' else 'is ' + state}", flush=True)
    todo = [job for job in jobs if states[job] in ("new", "begun")]
    if todo:
        print(f"{len(todo)} of {len(jobs)} runs to do with {os.path.basename(program)}"
              + (f" on GPUs {' '.join(lanes)}" if lanes[0] is not None else ""), flush=True)
    check_recipes(todo, program, lanes[0], defaults)
    failed = train(todo, program, lanes)
    held.close()
    written = [job.directory for job in jobs if job_state(job, defaults) != "new"]
    return written, len(failed)
