"""A server for a while under everything that clients do: good and bad requests, slow clients, clients that go away.

``python benchmarks/soak.py --model FOLDER --texts FILE --minutes 10`` checks each answer against ``Classifier``, counts what
was lost or doubled, and prints the memory at the beginning and at the end, and the latencies.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from serving import Client, server, texts_of

BAD = (
    b"",
    b"{",
    b'{"inputs": 3}',
    b'{"inputs": ["a", "b", "c"]}',
    b'{"inputs": ""}',
    b'{"inputs": "a", "quality": "no"}',
)


@dataclass
class Soak:
    """What happened.

    Attributes:
        counts: of good, bad, slow and abandoned requests.
        wrong: answers that are not the classifier's, or not what a bad request gets.
        seconds: of good requests.
        memory: MiB of the server, as it went.
    """

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The figures."""
        ordered = sorted(self.seconds)
        quarter = max(1, len(self.memory) // 4)
        return {
            **self.counts,
            "wrong": len(self.wrong),
            "median_ms": round(1e3 * statistics.median(ordered), 2),
            "p99_ms": round(1e3 * ordered[int(0.99 * (len(ordered) - 1))], 2),
            "memory_first_quarter_mib": round(statistics.median(self.memory[:quarter]), 1),
            "memory_last_quarter_mib": round(statistics.median(self.memory[-quarter:]), 1),
        }


class Clients:
    """Clients of all kinds.

    Args:
        port: the server's.
        texts: texts, with the right answers.
        expected: scores by label.
        seed: of what they do.
    """

    def __init__(self, port: int, texts: Sequence[str], expected: Sequence[dict[str, float]], seed: int = 0) -> None:
        self.port, self.texts, self.expected = port, texts, expected
        self.draw, self.soak = random.Random(seed), Soak()

    async def good(self, client: Client) -> None:
        """A request whose answer is checked."""
        place = self.draw.randrange(len(self.texts))
        began = time.perf_counter()
        status, body = await client.post(self.texts[place])
        self.soak.seconds.append(time.perf_counter() - began)
        self.soak.counts["good"] += 1
        if status != 200:
            self.soak.wrong.append(f"{status}: {body!r}")
            return
        scores = {x["label"]: x["score"] for x in json.loads(body)["predictions"]}
        if any(abs(scores[label] - score) > 1e-4 for label, score in self.expected[place].items()):
            self.soak.wrong.append(f"text {place}: {scores}")

    async def other(self, kind: str) -> None:
        """A request that is bad, comes byte by byte, or whose client does not wait."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        body = self.draw.choice(BAD) if kind == "bad" else json.dumps({"inputs": self.draw.choice(self.texts)}).encode()
        raw = b"POST /predict HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        self.soak.counts[kind] += 1
        if kind == "gone":
            writer.write(raw[: self.draw.randrange(1, len(raw) + 1)])
            await writer.drain()
        else:
            size = 7 if kind == "slow" else len(raw)
            for begin in range(0, len(raw), size):
                writer.write(raw[begin : begin + size])
                await asyncio.sleep(0.005 if kind == "slow" else 0)
            answer = await reader.read()
            expected = (b"400", b"422") if kind == "bad" else (b"200",)
            if answer[9:12] not in expected or answer.count(b"HTTP/1.1") != 1:
                self.soak.wrong.append(f"{kind}: {answer[:200]!r}")
        writer.close()

    async def run(self, seconds: float, clients: int, pid: int) -> Soak:
        """All of them together for so many seconds."""
        end = time.monotonic() + seconds

        async def one() -> None:
            client = Client(self.port)
            while time.monotonic() < end:
                kind = self.draw.choices(("good", "bad", "slow", "gone"), (80, 10, 5, 5))[0]
                await (self.good(client) if kind == "good" else self.other(kind))
            client.close()

        async def watch() -> None:
            while time.monotonic() < end:
                self.soak.memory.append(resident(pid))
                await asyncio.sleep(seconds / 40)

        await asyncio.gather(watch(), *(one() for _ in range(clients)))
        return self.soak


def resident(pid: int) -> float:
    """MiB of memory that a process holds."""
    with open(f"/proc/{pid}/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def soak(folder: str, texts: Sequence[str], seconds: float, clients: int = 32, threads: int = 1) -> Soak:
    """Runs a server and all clients."""
    from mp_model import Classifier

    expected = [answer.scores for answer in Classifier.load(folder, "float32")(list(texts))]
    with server("greedy", folder, "float32", threads) as (port, process):
        return asyncio.run(Clients(port, texts, expected).run(seconds, clients, process.pid))


def main() -> None:
    """Soaks, and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a model")
    parser.add_argument("--texts", required=True, help="file of texts")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--clients", type=int, default=32)
    given = parser.parse_args()
    found = soak(given.model, texts_of(given.texts), 60 * given.minutes, given.clients)
    print(json.dumps(found.as_json()))
    print("\n".join(found.wrong[:10]))


if __name__ == "__main__":
    main()
