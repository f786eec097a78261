"""How a bucket is reached: credentials, region and endpoint, found as every client of S3 finds them.

AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; else the profile of AWS_PROFILE, or the default one, with its role
or single sign-on; else the role of the container or the machine. Keys that expire are asked for again, for both who read and
write: obstore and DuckDB. With AWS_SKIP_SIGNATURE=true, and only then, a bucket is read as anybody may.
"""

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from weakref import WeakKeyDictionary

import duckdb

from saelake.extras import require
from saelake.warehouse.errors import UserError, one_line

AGAIN_AFTER = timedelta(minutes=5)
"""How soon obstore asks again for keys that expire; they are renewed in time by who gives them."""


@dataclass(frozen=True)
class Access:
    """How one bucket is reached."""

    region: str
    endpoint: str | None
    is_anonymous: bool
    _given: Any
    """What botocore found, whose keys it renews; None for anybody."""
    _last: "WeakKeyDictionary[duckdb.DuckDBPyConnection, dict[str, str]]" = field(default_factory=WeakKeyDictionary)
    """The keys that connections have."""

    @classmethod
    def found(cls, url: str) -> "Access":
        """What the environment and the files of AWS say; raises UserError where they give no credentials."""
        given = os.environ.get
        region = given("AWS_REGION") or given("AWS_DEFAULT_REGION")
        endpoint = given("AWS_ENDPOINT_URL_S3") or given("AWS_ENDPOINT_URL")
        is_anonymous = (given("AWS_SKIP_SIGNATURE") or "").lower() in ("1", "true", "yes")
        require("s3", "a lake on S3")
        from botocore.credentials import Credentials
        from botocore.exceptions import BotoCoreError
        from botocore.session import Session

        keys: Any = None
        if given("AWS_ACCESS_KEY_ID"):
            keys = Credentials(given("AWS_ACCESS_KEY_ID"), given("AWS_SECRET_ACCESS_KEY") or "", given("AWS_SESSION_TOKEN"))
        try:
            session = Session()
            keys = session.get_credentials() if keys is None and not is_anonymous else keys
            region = region or session.get_config_variable("region")
            endpoint = endpoint or session.get_scoped_config().get("endpoint_url")
        except BotoCoreError as error:  # a profile that is not there, say, which those who give keys do not need
            if keys is None and not is_anonymous:
                raise UserError(f"no credentials for {url}: {one_line(error)}; see AWS_PROFILE") from error
        region = region or "us-east-1"
        if is_anonymous:
            return cls(region, endpoint, True, None)
        if keys is None:
            raise UserError(
                f"no credentials for {url}: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or log in with "
                f"`aws sso login`; AWS_SKIP_SIGNATURE=true reads a bucket that anybody may read"
            )
        return cls(region, endpoint, False, keys)

    def _keys(self) -> Any:
        """Keys that are valid now; raises UserError if there are none any more."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return self._given.get_frozen_credentials()
        except (BotoCoreError, ClientError) as error:
            raise UserError(f"the credentials for S3 cannot be had: {one_line(error)}; log in again") from error

    def for_obstore(self) -> dict[str, Any]:
        """Keys, as obstore asks for them, again and again."""
        keys = self._keys()
        expires = datetime.now(UTC) + AGAIN_AFTER if hasattr(self._given, "refresh_needed") and keys.token else None
        return {
            "access_key_id": keys.access_key,
            "secret_access_key": keys.secret_key,
            "token": keys.token,
            "expires_at": expires,
        }

    def for_duckdb(self, con: duckdb.DuckDBPyConnection) -> dict[str, str]:
        """Keys, as a secret of DuckDB has them; none for anybody."""
        if self.is_anonymous:
            return {}
        keys = self._keys()
        named = {"key_id": keys.access_key, "secret": keys.secret_key, "session_token": keys.token}
        found = {name: value for name, value in named.items() if value}
        self._last[con] = found
        return found

    def is_new(self, con: duckdb.DuckDBPyConnection) -> bool:
        """Whether the keys are others than those that a connection has."""
        if self.is_anonymous or not hasattr(self._given, "refresh_needed"):
            return False
        known = self._last.get(con, {})
        keys = self._keys()
        return (known.get("key_id"), known.get("session_token")) != (keys.access_key, keys.token)
