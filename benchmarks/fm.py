"""make bench-fm: training the factorisation machine at the paper's size, beside myfm on the same data.

    PYTHONPATH=~/.cache/saelake-bench/fm python -m benchmarks.fm --cache ~/.cache/saelake-bench

1,042 prompts x 917,504 columns (14 layers of 65,536), 3,920 non-zeros a prompt, embeddings of length 20. Every contender fits
in a process of its own, on one thread, so that its peak memory is its own; seconds are of the processor, since the machine is
shared. myfm has no epochs but draws: it runs until it is as accurate. Both also fit data whose interactions are known.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, load_npz, save_npz

from benchmarks.harness import Report
from benchmarks.interacting import Interacting, cosines, interacting, partner_auc

PROMPTS = 1_042
COLUMNS = 14 * 65_536
NONZEROS = 4 * 14 * 70
SIZE = 20
EPOCHS = 20
# As the organism's last four tokens: 65% of a prompt's non-zeros are features that fire on at least a fifth of all prompts.
COMMON_SHARE = 0.65
COMMON_RATE = 0.55
SIGNAL = 0.25  # a linear probe is right on 97 of 100 prompts
MOST_DRAWS = 160
TOLERANCE = 0.01
SPLITS = {"train": np.arange(834), "val": np.arange(834, 938), "test": np.arange(938, PROMPTS)}


class Fitted(NamedTuple):
    """One contender's fit."""

    seconds: float
    """Of the processor."""
    wall: float
    peak_mb: float
    """Largest resident memory of its process, interpreter and libraries included."""
    accuracy: float


def study_like(seed: int) -> tuple[csr_matrix, np.ndarray]:
    """Prompts as SAEs see them: features that many prompts share, some of them more often on harmful ones, and a long tail."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(PROMPTS) % 2)
    n_common = int(NONZEROS * COMMON_SHARE / COMMON_RATE)
    n_tail = NONZEROS - int(NONZEROS * COMMON_SHARE)
    names = rng.permutation(COLUMNS)
    base = np.log(COMMON_RATE / (1 - COMMON_RATE)) + rng.normal(0, 0.5, n_common)
    signal = rng.normal(0, SIGNAL, n_common)
    rows = []
    for label in y:
        fires = rng.random(n_common) < 1 / (1 + np.exp(-base - signal * (2 * label - 1)))
        common = np.flatnonzero(fires)[:NONZEROS]
        # the logarithm of a tail feature's rank is uniform: Zipf's law
        tail = np.unique(n_common + np.exp(rng.uniform(0, np.log(COLUMNS - n_common), 3 * n_tail)).astype(np.int64) - 1)
        rows.append(names[np.concatenate([common, rng.permutation(tail)[: NONZEROS - len(common)]])])
    columns = np.concatenate(rows)
    values = rng.gamma(2, 0.5, len(columns)).astype(np.float32)
    return csr_matrix((values, (np.repeat(np.arange(PROMPTS), list(map(len, rows))), columns)), shape=(PROMPTS, COLUMNS)), y


def prepared(x: csr_matrix) -> csr_matrix:
    """As the stage prepares its input: columns that fire in training, the most common first, divided by their largest value."""
    train = x[SPLITS["train"]].tocsc()
    counts = np.diff(train.indptr)
    kept = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    largest = train.max(axis=0).toarray()[0, kept]
    narrow = x.tocsc()[:, kept]
    narrow.data /= np.repeat(largest, np.diff(narrow.indptr))
    return narrow.tocsr()


def ours(x: csr_matrix, y: np.ndarray, splits: dict[str, np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings, and the predictions for the test prompts, of the best of 20 epochs."""
    from saelake.analysis.interactions.factorisation_machine import Settings, train

    fitted = train(x, y, splits, Settings(size, learning_rate=1e-3, epochs=EPOCHS, batch_size=64, init_sd=0.001, seed=0)).machine
    return (fitted.embeddings if size else fitted.weights), fitted.logits(x[splits["test"]]) > 0


def myfm(x: csr_matrix, y: np.ndarray, splits: dict[str, np.ndarray], draws: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The same of myfm's classifier, trained on train and val, since it needs no validation; embeddings of its last draw."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import myfm as peer
    rows = np.concatenate([splits["train"], splits["val"]])
    found: Any
    if kind == "variational":
        found = peer.VariationalFMClassifier(rank=SIZE, random_seed=0)
        found.fit(x[rows].astype(np.float64), y[rows].astype(int), n_iter=draws)
        embeddings = found.predictor_.weights().V
    else:
        found = peer.MyFMGibbsClassifier(rank=SIZE, random_seed=0)
        found.fit(x[rows].astype(np.float64), y[rows].astype(int), n_iter=draws, n_kept_samples=max(1, draws // 2))
        embeddings = found.predictor_.samples[-1].V
    return np.asarray(embeddings), found.predict(x[splits["test"]].astype(np.float64)) > 0.5


def fit(contender: str, folder: Path) -> None:
    """What a child process does: reads the data, fits, and prints its Fitted."""
    x, y = load_npz(folder / "x.npz"), np.load(folder / "y.npy")
    name, _, draws = contender.partition(":")
    start, wall = time.process_time(), time.perf_counter()
    _, said = ours(x, y, SPLITS, SIZE) if name == "saelake" else myfm(x, y, SPLITS, int(draws), name)
    seconds, wall = time.process_time() - start, time.perf_counter() - wall
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(Fitted(seconds, wall, peak_mb, float((said == (y[SPLITS["test"]] > 0.5)).mean()))))


def measured(contender: str, folder: Path) -> Fitted:
    """The Fitted of a child process."""
    command = [sys.executable, "-m", "benchmarks.fm", "--fit", contender, "--cache", str(folder)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return Fitted(*json.loads(out.strip().splitlines()[-1]))


def at_size(report: Report, folder: Path, rounds: int) -> None:
    """Seconds, memory and accuracy at the paper's size; myfm with as many draws as it takes."""
    x, y = study_like(seed=0)
    x = prepared(x)
    folder.mkdir(parents=True, exist_ok=True)
    save_npz(folder / "x.npz", x, compressed=False)
    np.save(folder / "y.npy", y)
    report.line(f"\n{PROMPTS} prompts x {COLUMNS} columns, of which {x.shape[1]} fire in training; {NONZEROS} non-zeros a prompt")
    mine = [measured("saelake", folder)]
    shown(report, f"saelake, {EPOCHS} epochs", mine[0])
    draws = 20
    if find_spec("myfm") is None:
        report.not_run("myfm", "not installed: `make bench-fm` installs it beside the repository")
    else:
        peer = f"variational:{draws}"
        theirs = [measured(peer, folder)]
        shown(report, f"myfm, {draws} variational iterations", theirs[0])
        while theirs[0].accuracy < mine[0].accuracy - TOLERANCE and draws < MOST_DRAWS:
            draws *= 2
            peer = f"variational:{draws}"
            theirs = [measured(peer, folder)]
            shown(report, f"myfm, {draws} variational iterations", theirs[0])
        gibbs = measured(f"gibbs:{draws}", folder)
        shown(report, f"myfm, {draws} Gibbs draws", gibbs)
        if theirs[0].accuracy < mine[0].accuracy - TOLERANCE:
            report.line(f"myfm does not become as accurate in {draws} iterations: the ratio is a lower bound")
        for _ in range(rounds - 1):
            mine.append(measured("saelake", folder))
            theirs.append(measured(peer, folder))
        report.ratio("fm_speed_up", statistics.median(b.seconds / a.seconds for a, b in zip(mine, theirs, strict=True)), ">= 2")
        report.ratio("fm_accuracy_difference", mine[0].accuracy - theirs[0].accuracy, f">= -{TOLERANCE}")
    report.ratio("fm_seconds", statistics.median(f.seconds for f in mine), "<= 60")
    report.ratio("fm_peak_mb", max(f.peak_mb for f in mine), "<= 1000")


def shown(report: Report, name: str, one: Fitted) -> None:
    report.line(
        f"  {name:<32} {one.seconds:7.1f} s ({one.wall:.1f} s on the clock), "
        f"peak {one.peak_mb:5.0f} MB, test accuracy {one.accuracy:.3f}"
    )


def on_known_interactions(report: Report) -> None:
    """Accuracy, and how well the cosines of embeddings (the sizes of the probe's weights) rank each feature's partner."""
    data = interacting(10_000, 20, seed=1)
    test = data.y[data.splits["test"]] > 0.5
    report.line(f"\n{data.x.shape[0]} rows of {data.x.shape[1]} features: 20 interact in pairs, none speaks by itself")
    contenders: dict[str, Callable[[Interacting], tuple[np.ndarray, np.ndarray]]] = {
        "saelake": lambda d: ours(d.x, d.y, d.splits, SIZE),
        "probe": lambda d: ours(d.x, d.y, d.splits, 0),
    }
    if find_spec("myfm") is not None:
        contenders["myfm variational"] = lambda d: myfm(d.x, d.y, d.splits, 100, "variational")
        contenders["myfm Gibbs"] = lambda d: myfm(d.x, d.y, d.splits, 100, "gibbs")
    targets = {"saelake": ">= 0.95", "probe": "<= 0.60"}
    for name, contender in contenders.items():
        learned, said = contender(data)
        likeness = cosines(learned) if learned.ndim == 2 else np.tile(np.abs(learned), (len(learned), 1))
        report.line(f"  {name:<18} test accuracy {(said == test).mean():.3f}")
        report.ratio(
            f"partner_auc_{name.replace(' ', '_').lower()}", partner_auc(likeness, data.partner), targets.get(name, "none")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "saelake-bench")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fit", metavar="CONTENDER", help="used by the command itself")
    given = parser.parse_args()
    if given.fit:
        fit(given.fit, given.cache)
        return
    packages = ["torch", "torchfm", "scipy", *(["myfm"] if find_spec("myfm") else [])]
    report = Report("fm", "The factorisation machine", packages)
    at_size(report, given.cache / "fm-data", given.rounds)
    on_known_interactions(report)
    report.keep()


if __name__ == "__main__":
    main()
