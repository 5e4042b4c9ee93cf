"""Quorum's side of a comparison, in a process of its own: peer_quorum, driven through its standard input."""
import json
import os
import shutil
import subprocess
import tempfile
import time


def median(values):
    """The upper one of the two in the middle, as everywhere in bench."""
    return sorted(values)[len(values) // 2]


def settle():
    """Threads of either side spin for some milliseconds after their work; the other side starts once they sleep."""
    time.sleep(0.02)


class QuorumProcess:
    """Answers commands (bench/peers/quorum_server.cpp). What it writes for the peers lies in `folder` until the end."""

    def __init__(self, program, data):
        os.makedirs(data, exist_ok=True)
        self.folder = tempfile.mkdtemp(dir=data)
        self._process = subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.stdin.close()
        self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def ask(self, *words):
        self._process.stdin.write(" ".join(str(word) for word in words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError("peer_quorum ended")
        return json.loads(answer)

    def load(self, size):
        return self.ask("load", size, self.folder)
