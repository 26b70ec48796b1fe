"""Who asks which service that speaks one of Amazon's protocols, and the URLs that say so."""

from dataclasses import dataclass
from urllib.parse import parse_qs, quote, unquote, urlencode, urlsplit


@dataclass(frozen=True, slots=True)
class Account:
    """Where a service answers, and who asks."""

    endpoint: str
    access_key: str
    secret_key: str
    region: str

    @classmethod
    def of(cls, url: str) -> "Account":
        """The account of a backend's URL, which names its endpoint."""
        parts = urlsplit(url)
        options = parse_qs(parts.query)
        access, secret = unquote(parts.username or ""), unquote(parts.password or "")
        return cls(options["endpoint"][0], access, secret, options.get("region", ["us-east-1"])[0])

    def url(self, scheme: str, place: str, **options: str) -> str:
        """The URL of a backend over that bucket or table prefix."""
        login = f"{quote(self.access_key, safe='')}:{quote(self.secret_key, safe='')}"
        said = urlencode({"endpoint": self.endpoint, "region": self.region, **options}, safe=":/")
        return f"{scheme}://{login}@{place}?{said}"


class Service:
    """What a server of our own and a given one both tell."""

    account: Account

    @property
    def endpoint(self) -> str:
        """Its address: http://host:port."""
        return self.account.endpoint

    @property
    def access_key(self) -> str:
        """Who may do everything."""
        return self.account.access_key

    @property
    def secret_key(self) -> str:
        """The secret of that key."""
        return self.account.secret_key

    @property
    def region(self) -> str:
        """The region that requests are signed for."""
        return self.account.region
