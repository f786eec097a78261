"""A judge behind an OpenAI-compatible endpoint: a language model is asked a question about each answer.

The answers go to the host that the recipe names and to no other: redirects are not followed, proxies of the environment are not
used, and a host that is not this machine needs the user's leave. Replies are untrusted: bounded in size, read for one word.
"""

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx

from saelake.analysis.judges.protocol import Answer, Need, Verdict
from saelake.analysis.judges.reasoning import Reasoning
from saelake.analysis.judges.replies import Replies, Reply, key
from saelake.ingest.recipe import Recipe
from saelake.queries.output import printable
from saelake.warehouse.durable import sha256_text
from saelake.warehouse.errors import UserError

LARGEST_REPLY = 1 << 20
"""Bytes of a reply."""
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0
"""Seconds before it is asked again."""
QUOTED = 120
PLACEHOLDERS = re.compile(r"\{(prompt|answer)\}")


class _Again(Exception):
    """It is worth asking again, after so many seconds if the endpoint says so."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = after


class Endpoint:
    """The judge of a table [judges.NAME]; see `ingest.recipe.judges` for its settings."""

    needs: frozenset[Need] = frozenset({"text", "network"})

    def __init__(self, name: str, recipe: Recipe, working: Path | None = None, run: Callable[[], str] = str) -> None:
        self._table, self._field, self._run = recipe.judges[name], f"judges.{name}", run
        self.labels: tuple[str, ...] = self._table.labels
        self._sends = recipe.sends
        if self._sends and not self._table.is_here and self._table.host.lower() not in recipe.hosts:
            raise UserError(
                f"{self._field}.endpoint would send prompts and answers to {self._table.host}: say --allow-host "
                f"{self._table.host} if you want that (from Python: recipe.allowing(hosts=[...]))"
            )
        self._reasoning = Reasoning.behind("", recipe.generation.reasoning)
        self._replies = Replies(working, name)
        meanings = ((self._table.refused, True), (self._table.answered, False), (self._table.does_not_apply, None))
        self._means = {word.strip().casefold(): refused for words, refused in meanings for word in words}

    @property
    def identity(self) -> Mapping[str, object]:
        """The model, the question and what its replies mean; not where it is asked. Raises UserError if its key is not set."""
        if self._sends:
            self._headers()
        table = self._table
        assert table.question is not None, "an endpoint has a question"
        return {
            "model": table.model,
            "question_sha256": sha256_text(table.question),
            "means": {word: {True: "refused", False: "answered", None: "does not apply"}[m] for word, m in self._means.items()},
            "max_tokens": table.max_tokens,
        }

    def __call__(self, answers: Sequence[Answer]) -> list[Verdict]:
        """One verdict an answer. Equal answers to a prompt are asked about once, and what was asked before is not asked again."""
        assert self._sends, "a judge of a recipe that sends nothing"
        asked = {self._key(a): a for a in answers}
        missing = [k for k in asked if self._replies.get(k) is None]
        timeout = httpx.Timeout(self._table.timeout)
        with httpx.Client(timeout=timeout, follow_redirects=False, trust_env=False, headers=self._headers()) as client:
            pool = ThreadPoolExecutor(self._table.concurrency)
            try:
                for _ in pool.map(lambda k: self._replies.keep(k, self._run(), self._ask(client, asked[k])), missing):
                    pass
            finally:
                pool.shutdown(cancel_futures=True)
        verdicts = {k: self._verdict(a) for k, a in asked.items()}
        return [verdicts[self._key(a)] for a in answers]

    def _key(self, answer: Answer) -> str:
        return key(self._table.model, self._table.question, self._table.max_tokens, answer.prompt, answer.completion)

    def _headers(self) -> dict[str, str]:
        headers = {"accept-encoding": "identity"}
        if (variable := self._table.key_variable) is not None:
            secret = os.environ.get(variable, "").strip()
            if not secret or not secret.isascii() or not secret.isprintable():
                raise UserError(f"{self._field}.key_variable: the environment variable {variable} holds no key: set it")
            headers["authorization"] = f"Bearer {secret}"
        return headers

    def _verdict(self, answer: Answer) -> Verdict:
        reply = self._replies.get(self._key(answer))
        assert reply is not None, "every answer was asked about"
        text = self._reasoning.answer(reply.text)
        word = re.search(r"[\w-]+", text or "")
        if word is None or word[0].casefold() not in self._means:
            why = (
                "its reasoning does not end within max_tokens"
                if text is None
                else "its first word is none of those of the recipe"
            )
            raise UserError(
                f"{self._field}: {self._table.model} replied {_quoted(reply.text)}, and {why}: raise max_tokens, or put the word "
                "into refused, answered or does_not_apply"
            )
        refused = self._means[word[0].casefold()]
        return Verdict.of(refused, answer.completion, None if refused is None else float(refused))

    def _ask(self, client: httpx.Client, answer: Answer) -> Reply:
        values = {"prompt": answer.prompt, "answer": answer.completion}
        # One pass: what they hold is not looked at again.
        question = PLACEHOLDERS.sub(lambda found: values[found[1]], self._table.question or "")
        content = {
            "model": self._table.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": self._table.max_tokens,
        }
        for attempt in range(self._table.retries + 1):
            try:
                return self._reply(self._post(client, content))
            except _Again as error:
                if attempt == self._table.retries:
                    raise UserError(f"{self._field}: {self._url}: {error}, asked {attempt + 1} times") from None
                pause = FIRST_PAUSE * 2**attempt if error.after is None else error.after
                sleep(min(max(pause, 0.0), LONGEST_PAUSE))
        raise AssertionError("the last attempt returns or raises")

    @property
    def _url(self) -> str:
        return f"{(self._table.endpoint or '').rstrip('/')}/chat/completions"

    def _post(self, client: httpx.Client, content: Mapping[str, Any]) -> bytes:
        """The body of a reply with status 200; raises _Again, or UserError for what asking again does not cure."""
        ends = monotonic() + self._table.timeout
        try:
            with client.stream("POST", self._url, json=content) as response:
                body = b""
                for part in response.iter_raw():
                    body += part
                    if len(body) > LARGEST_REPLY:
                        raise UserError(f"{self._field}: {self._url} sends more than {LARGEST_REPLY:,} bytes")
                    if monotonic() > ends:
                        raise _Again(f"no whole reply within {self._table.timeout:g} seconds")
        except httpx.TimeoutException:
            raise _Again(f"no reply within {self._table.timeout:g} seconds") from None
        except httpx.TransportError as error:
            raise _Again(f"it cannot be reached ({type(error).__name__}: {printable(str(error))[:QUOTED]})") from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise UserError(f"{self._field}: {self._url}: {type(error).__name__}: {printable(str(error))[:QUOTED]}") from None
        status = response.status_code
        if status == 429 or status >= 500:
            after = response.headers.get("retry-after", "")
            raise _Again(f"status {status}", float(after) if after.isascii() and after.isdecimal() else None)
        if 300 <= status < 400:
            raise UserError(
                f"{self._field}: {self._url} redirects elsewhere, which is not followed: answers go to the recipe's host alone"
            )
        if status != 200:
            hint = f"; is the key in {self._table.key_variable} right?" if status in (401, 403) else ""
            raise UserError(f"{self._field}: {self._url} answers with status {status} ({self._shown(body)}){hint}")
        return body

    def _reply(self, body: bytes) -> Reply:
        try:
            found = json.loads(body)
            text = found["choices"][0]["message"]["content"]
            usage = found.get("usage") or {}
            if not isinstance(text, str):
                raise TypeError("content is not text")
            counts = [usage.get(name, 0) for name in ("prompt_tokens", "completion_tokens")]
            if any(type(n) is not int or not 0 <= n < 2**53 for n in counts):
                raise TypeError("usage is not a count")
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError):
            raise UserError(
                f"{self._field}: {self._url} does not reply as an OpenAI-compatible endpoint (choices[0].message.content), but "
                f"with {self._shown(body)}"
            ) from None
        return Reply(text, *counts)

    def _shown(self, body: bytes) -> str:
        text = body[:4096].decode("utf-8", errors="replace")
        secret = os.environ.get(self._table.key_variable, "").strip() if self._table.key_variable else ""
        return _quoted(text.replace(secret, "***") if secret else text)


def _quoted(text: str) -> str:
    flat = printable(" ".join(text.split()))
    return f'"{flat[:QUOTED]}{"…" if len(flat) > QUOTED else ""}"'
