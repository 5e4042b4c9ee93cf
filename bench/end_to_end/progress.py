"""A line that says how far things are, where somebody watches."""
import sys


def progress(what, done, total):
    if sys.stderr.isatty():
        print(f"\r{what}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
