"""Servers under load: ours, with either schedule, beside others on the same packed path, and transformers' padded model.

``python benchmarks/serving.py --model FOLDER --texts FILE`` starts one server after the other, each in a process of its own,
and sends it texts: from 1, 8 and 64 clients that wait for their answers, and at rates at which texts come whether or not
the last ones are answered (Poisson arrivals), up to the highest at which 99 of 100 answers take 250 ms or less. Before that,
texts that come alone are measured beside direct calls with the same texts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import re
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mp_model.serving.settings import WAITING

P99 = 0.250  # seconds
CLIENTS = (1, 8, 64)
LONE = 200  # texts that come alone
GROWTH = 1.25  # of the rate, from one open loop to the next
NEAR = 1.04  # ratio of a rate that is too high to one that is not, from which on they count as one
LOWEST_RATE = 1.0  # texts a second
WAYS = {
    "depth-wise": "depth-wise, three groups at once",
    "one": "one forward a request",
    "collect": "collect 32 texts or 5 ms",
    "greedy": "greedy, the default: whatever waits, one forward",
    "padded": "transformers, padded, whatever waits, in float32",
}


# The servers


def serve(way: str, folder: str, precision: str, port: int, threads: int) -> None:
    """Serves in this process, in one of the ways."""
    from mp_model import Classifier
    from mp_model.serving.policy import InGroups
    from mp_model.serving.running import bound_socket, run, set_up_logs
    from mp_model.serving.service import Service
    from mp_model.serving.settings import SCHEDULES, ServerSettings

    set_up_logs(as_json=False, requests=False)
    settings = ServerSettings(port=port, threads=threads, max_concurrent_requests=4096, max_queue_tokens=1 << 20)
    service = Service(Classifier.load(folder, precision, threads=threads), settings)
    policies = {
        "depth-wise": InGroups(SCHEDULES["depth-wise"]),
        "one": InGroups(texts=1),
        "collect": InGroups(patience=0.005, texts=32),
    }
    service.worker.policy = policies.get(way, InGroups())
    if way == "padded":
        service.worker.schedule = Padded(service.worker)  # type: ignore[assignment]
    run(service, bound_socket(settings))


class Padded:
    """In a schedule's place: one forward of transformers' model, in padded batches, for all texts that are let in."""

    def __init__(self, worker: Any) -> None:
        from mp_model.measuring.timing import padded_twin

        model = worker.classifier.model
        self.twin, self.problem, self.last = padded_twin(model), model.config.problem, model.config.num_hidden_layers
        self.front, self.pyramid = worker.schedule.front, worker.schedule.pyramid
        self.layers, self.steps = [], 0

    def run_taken(self, number: int, part: Any) -> Any:
        """The step of a batch; all of its texts leave."""
        from mp_model.engine import Decided, StepResult
        from mp_model.flops import Step

        words = part.inputs.words
        padded = {"input_ids": words.values, "token_type_ids": part.inputs.token_types}
        width, rows = words.max_seqlen, words.batch_size
        mask = words.lengths.unsqueeze(1) > words.lengths.new_tensor(range(width)).unsqueeze(0)
        inputs = {name: values.new_zeros(rows, width).masked_scatter(mask, values) for name, values in padded.items()}
        logits = self.twin(**inputs, attention_mask=mask.long()).logits
        decided = Decided(self.last, part.samples, logits, self.problem.uncertainty(logits), None)
        return StepResult(decided, Step(0, "embedded", False, part.samples, words.cu_seqlens))


@contextmanager
def server(way: str, folder: str, precision: str, threads: int) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """A server in a process of its own; gives its port."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = ["--serve", way, "--model", folder, "--precision", precision]
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments, "--port", str(port), "--threads", str(threads)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **WAITING},
    )
    try:
        assert process.stderr is not None
        if not any("ready" in line for line in process.stderr):
            raise ValueError(f"the server {way!r} has ended with {process.wait()}")
        yield port, process
    finally:
        process.terminate()
        process.wait()
        process.stderr.close()


# The clients


class Client:
    """A connection that is kept open.

    Args:
        port: the server's, on this machine.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, text: str) -> tuple[int, bytes]:
        """Status and body of the answer to a text."""
        if self.streams is None:
            self.streams = await asyncio.open_connection("127.0.0.1", self.port)
        reader, writer = self.streams
        body = json.dumps({"inputs": text, "details": True}).encode()
        writer.write(b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        assert length is not None
        return int(head[9:12]), await reader.readexactly(int(length[1]))

    def close(self) -> None:
        """Ends the connection."""
        if self.streams is not None:
            self.streams[1].close()


@dataclass
class Seen:
    """The answers to a load.

    Attributes:
        seconds: of each answer, from the time at which its text was due.
        lasted: seconds of the whole.
        refused: number of answers with another status than 200.
    """

    seconds: list[float] = field(default_factory=list)
    lasted: float = 0.0
    refused: int = 0

    def as_json(self) -> dict[str, float]:
        """Figures, in milliseconds and answers a second."""
        ordered = sorted(self.seconds)
        at = lambda share: 1e3 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
        return {
            "answers": len(ordered),
            "refused": self.refused,
            "a_second": round(len(ordered) / self.lasted, 1),
            "median_ms": round(1e3 * statistics.median(ordered), 2),
            "p99_ms": round(at(0.99), 2),
        }


async def closed_loop(port: int, texts: Sequence[str], clients: int, seconds: float) -> Seen:
    """Clients that send a text when they have the answer to the last."""
    seen, began = Seen(), time.perf_counter()

    async def one(number: int) -> None:
        client, place = Client(port), number
        while time.perf_counter() < began + seconds:
            sent = time.perf_counter()
            status, _ = await client.post(texts[place % len(texts)])
            seen.seconds.append(time.perf_counter() - sent)
            seen.refused += status != 200
            place += clients
        client.close()

    await asyncio.gather(*(one(number) for number in range(clients)))
    seen.lasted = time.perf_counter() - began
    return seen


async def open_loop(port: int, texts: Sequence[str], rate: float, seconds: float, seed: int = 0) -> Seen:
    """Texts that come at random, so many a second, whether or not the last ones are answered."""
    draw, seen, idle = random.Random(seed), Seen(), []
    tasks: set[asyncio.Task[None]] = set()
    began = due = time.perf_counter()

    async def one(due: float, text: str) -> None:
        client = idle.pop() if idle else Client(port)
        status, _ = await client.post(text)
        seen.seconds.append(time.perf_counter() - due)
        seen.refused += status != 200
        idle.append(client)

    number = 0
    while (due := due + draw.expovariate(rate)) < began + seconds:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        task = asyncio.create_task(one(due, texts[number % len(texts)]))
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        number += 1
    while tasks:
        await asyncio.wait(tasks)
    seen.lasted = time.perf_counter() - began
    for client in idle:
        client.close()
    return seen


async def highest_rate(measure: Callable[[float], Awaitable[Seen]], start: float) -> dict[str, float]:
    """Figures at the highest rate at which 99 of 100 answers come within :data:`P99` and none is refused.

    Rates rise until one is too high, or fall until one is not; then the interval between the last two is halved until it is
    narrower than :data:`NEAR`.
    """
    seen: dict[float, dict[str, float]] = {}

    async def holds(rate: float) -> bool:
        figures = seen[rate] = (await measure(rate)).as_json()
        return figures["p99_ms"] <= 1e3 * P99 and not figures["refused"]

    low, high, rate = 0.0, math.inf, start
    while high > NEAR * low and rate > LOWEST_RATE:
        if await holds(rate):
            low = rate
        else:
            high = rate
        rate = low * GROWTH if high == math.inf else high / GROWTH if low == 0 else math.sqrt(low * high)
    return {"rate": round(low, 1), **seen.get(low, {})}


def processor_seconds(process: int) -> float:
    """The time that processors have spent on a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# The measurement


def measured(
    way: str, folder: str, precision: str, texts: Sequence[str], seconds: float, threads: int
) -> dict[str, Any]:
    """The figures of one way."""
    with server(way, folder, precision, threads) as (port, process):

        async def all_loads() -> dict[str, Any]:
            await closed_loop(port, texts, 8, min(2.0, seconds))
            found: dict[str, Any] = {}
            for clients in CLIENTS:
                before = [processor_seconds(x) for x in (process.pid, os.getpid())]
                figures = (await closed_loop(port, texts, clients, seconds)).as_json()
                spent = [processor_seconds(x) - y for x, y in zip((process.pid, os.getpid()), before, strict=True)]
                for name, x in zip(("server", "clients"), spent, strict=True):
                    figures[f"{name}_processor_ms"] = round(1e3 * x / figures["answers"], 2)
                found[f"{clients} clients"] = figures
            start = 0.5 * found["64 clients"]["a_second"]
            found["open loop"] = await highest_rate(lambda rate: open_loop(port, texts, rate, seconds), start)
            return found

        return asyncio.run(all_loads())


def lone(folder: str, precision: str, texts: Sequence[str], threads: int) -> dict[str, float]:
    """Median milliseconds of a text that comes alone: by a call of the classifier, by our server, and of their difference.

    Both take each text in turn. Where half of the texts leave before layer 1 and half do not, the median of other texts may
    be several times as long.
    """
    from mp_model import Classifier

    classifier = Classifier.load(folder, precision, threads=threads)
    direct: list[float] = []
    served: list[float] = []

    async def both(port: int) -> None:
        client = Client(port)
        for text in [*texts[:LONE], *texts[:LONE]]:
            began = time.perf_counter()
            classifier([text])
            between = time.perf_counter()
            await client.post(text)
            direct.append(between - began)
            served.append(time.perf_counter() - between)
        client.close()

    with server("greedy", folder, precision, threads) as (port, _):
        asyncio.run(both(port))
    pairs = list(zip(direct, served, strict=True))[len(direct) // 2 :]  # the first turn warms both up
    columns = {"direct": [x for x, _ in pairs], "served": [y for _, y in pairs], "added": [y - x for x, y in pairs]}
    return {f"{name}_ms": round(1e3 * statistics.median(times), 2) for name, times in columns.items()}


HEADING = (
    *("way", "requests a second, 1 client", "8", "64", "median ms, 1 client", "p99 ms, 64"),
    *("processor ms a request, 64: server", "clients", "highest rate"),
)


def table(document: dict[str, Any]) -> str:
    """The figures as a table in Markdown, medians of all rounds."""
    rounds = document["rounds"]

    def middle(way: str, load: str, name: str, digits: int = 0) -> str:
        return f"{statistics.median(turn[way][load][name] for turn in rounds):.{digits}f}"

    lines = [HEADING, ("---",) * len(HEADING)]
    for way in (way for way in WAYS if way in rounds[0]):
        speeds = [middle(way, f"{clients} clients", "a_second") for clients in CLIENTS]
        of_64 = [middle(way, "64 clients", f"{name}_processor_ms", 2) for name in ("server", "clients")]
        times = [middle(way, "1 clients", "median_ms", 1), middle(way, "64 clients", "p99_ms")]
        lines.append((WAYS[way], *speeds, *times, *of_64, middle(way, "open loop", "rate")))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def texts_of(path: str) -> list[str]:
    """The single texts of a file."""
    from mp_model.data.tables import read_texts

    return [text for text in read_texts(Path(path)) if isinstance(text, str)][:4000]


def main() -> None:
    """Measures all ways in turns, or serves in one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", help="file of figures to print as a table; nothing is measured")
    parser.add_argument("--model", help="folder of a fitted and tuned model")
    parser.add_argument("--texts", help="file of texts")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds of each load")
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument("--ways", default=",".join(WAYS), help="those that are measured")
    parser.add_argument("--output", help="file for the figures, as JSON")
    parser.add_argument("--serve", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.table:
        print(table(json.loads(Path(given.table).read_text())), end="")
        return
    if not given.model:
        parser.error("--model is needed to measure")
    if given.serve:
        serve(given.serve, given.model, given.precision, given.port, given.threads)
        return
    os.environ.update(WAITING)  # read when torch is imported
    texts = texts_of(given.texts)
    rounds = []
    for turn in range(given.rounds):
        found: dict[str, Any] = {"lone": lone(given.model, given.precision, texts, given.threads)}
        print(turn + 1, "lone", json.dumps(found["lone"]), flush=True)
        for way in given.ways.split(","):
            found[way] = measured(way, given.model, given.precision, texts, given.seconds, given.threads)
            print(turn + 1, way, json.dumps(found[way]), flush=True)
        rounds.append(found)
    settings = {name: getattr(given, name) for name in ("precision", "threads", "seconds")}
    if given.output:
        Path(given.output).write_text(json.dumps({"settings": settings, "rounds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
