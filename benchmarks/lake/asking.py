"""The questions, asked of all contenders that can answer them, and of DuckDB's own tables by the same statements."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.harness import Report, Times, alternated
from benchmarks.lake.captured import Asked, Captured, asked
from benchmarks.lake.sql_peers import BY_HAND, PLAIN_JOIN, Sql
from benchmarks.lake.writing import Stores

Contenders = dict[str, Callable[[], Any]]


def measure(report: Report, captured: Captured, stores: Stores, rounds: int) -> None:
    wanted = asked(stores.ours.con, captured.shape)
    everyone: dict[str, Any] = {
        "saelake": stores.ours,
        "delphi": stores.delphi,
        "delphi by hand": stores.delphi_by_hand,
        "csr": stores.csr,
        "polars": stores.polars,
        "native": stores.native,
        "naive parquet": stores.naive,
    }
    with_statistics = {name: store for name, store in everyone.items() if name != "naive parquet"}
    _agree("statistics", {name: partial(_digest, s) for name, s in with_statistics.items()})
    question = lambda: stores.ours.ask("features", limit=100)  # noqa: E731
    times = alternated({"features": question}, rounds, clock=time.process_time)
    report.ratio("statistics_question_ms", 1e3 * times.median("features"), "<= 60")

    top: Contenders = {name: partial(_top, s, wanted) for name, s in everyone.items()}
    times = _asked(report, "Top 5 samples of 200 features (saelake's and native's with their contexts and texts)", top, rounds)
    report.ratio("top_samples_vs_delphi", times.ratio("delphi", "saelake"), ">= 3")
    report.ratio("top_samples_vs_delphi_by_hand", times.ratio("delphi by hand", "saelake"), "none")

    pairs: Contenders = {name: partial(s.cofiring, wanted.many) for name, s in everyone.items()}
    times = _asked(report, "Pairwise co-firing of 200 features a layer", pairs, rounds)
    best = min((name for name in pairs if name != "saelake"), key=times.median)
    report.ratio(f"cofiring_vs_best_peer_{best.replace(' ', '_')}", times.ratio(best, "saelake"), ">= 1.0")
    if best != "csr":
        report.ratio("cofiring_vs_csr", times.ratio("csr", "saelake"), ">= 1.0")
    report.ratio("cofiring_vs_delphi", times.ratio("delphi", "saelake"), "none")

    one: Contenders = {name: partial(s.prompt, wanted.prompt) for name, s in everyone.items()}
    one = {"saelake, by prompt": lambda: stores.ours.prompt(wanted.prompt, "activations_by_prompt")} | one
    times = _asked(report, "Everything of one prompt", one, rounds)
    report.ratio("one_prompt_without_copy_ms", 1e3 * times.median("saelake"), "<= 200")
    report.ratio("one_prompt_vs_delphi", times.ratio("delphi", "saelake, by prompt"), ">= 10")
    report.ratio("one_prompt_vs_delphi_by_hand", times.ratio("delphi by hand", "saelake, by prompt"), "none")

    _against_native(report, stores, wanted, rounds)


def _digest(store: Any) -> object:
    return store.statistics().digest


def _top(store: Any, wanted: Asked) -> list[Any]:
    return sorted(store.top_samples(wanted.few, 5))


def _asked(report: Report, title: str, contenders: Contenders, rounds: int) -> Times:
    _agree(title, contenders)
    report.line(f"\n{title}")
    times = alternated(contenders, rounds, warmups=0, clock=time.process_time)
    report.line(times.table())
    return times


def _agree(what: str, contenders: Contenders) -> None:
    answers = {name: ask() for name, ask in contenders.items()}
    first = next(iter(answers.values()))
    differing = [name for name, answer in answers.items() if answer != first]
    assert not differing, f"{what}: {', '.join(differing)} answer differently"


def _against_native(report: Report, stores: Stores, wanted: Asked, rounds: int) -> None:
    """Every shipped question that reads activations or their statistics, and a user's own SQL, on both."""

    def questions(store: Sql) -> Contenders:
        prompt_id = store.prompt_id(wanted.prompt)
        store.want(wanted.few)
        return {
            "features": lambda: store.ask("features"),
            "top_samples": lambda: store.ask("top_samples", features=Asked.listed(wanted.few)),
            "cofiring": lambda: store.ask("cofiring", features=Asked.listed(wanted.many), pairs="same_layer"),
            "prompt": lambda: store.ask("prompt", prompt_id=prompt_id),
            "firing_on_tokens": lambda: store.ask("firing_on_tokens", prompt_id=prompt_id, k=2),
            "firing_on_tokens_everywhere": lambda: store.ask("firing_on_tokens", k=20),
            "random_active": lambda: store.ask("random_active", prompts=[prompt_id]),
            "candidates": lambda: store.ask("candidates"),
            "plain_join_of_200_features": lambda: store.sql(PLAIN_JOIN),
            "statistics_by_plain_sql": lambda: store.sql(BY_HAND),
        }

    report.line("\nThe same statements on DuckDB's own tables, sorted by feature (saelake has its copy by prompt, native too)")
    ours, theirs = questions(stores.ours), questions(stores.native)
    for name in ours:
        times = alternated({f"{name}, saelake": ours[name], f"{name}, native": theirs[name]}, rounds, clock=time.process_time)
        report.line(times.table())
        target = "<= 1.5" if name in ("firing_on_tokens", "plain_join_of_200_features") else "<= 2.0"
        report.ratio(f"vs_native_{name}", times.ratio(f"{name}, saelake", f"{name}, native"), target)
