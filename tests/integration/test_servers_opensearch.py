"""The OpenSearch node: documents survive kills, nothing is left."""

import os
from collections.abc import Iterator

import opensearchpy
import pytest

from datalayer._settings.url import BackendUrl
from tests.servers import NotControllable, Servers
from tests.servers.given import OPENSEARCH_VARIABLE
from tests.servers.opensearch import LocalOpenSearch
from tests.servers.ports import is_free
from tests.servers.watchdog import look

# Where a server is given by address there is no local starter to test.
__test__ = OPENSEARCH_VARIABLE not in os.environ
pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def local() -> Iterator[Servers]:
    with Servers() as servers:
        yield servers


@pytest.fixture(scope="module")
def node(local: Servers) -> LocalOpenSearch:
    node = local.opensearch()
    assert isinstance(node, LocalOpenSearch)
    assert local.opensearch() is node
    return node


@pytest.fixture
def client(node: LocalOpenSearch) -> Iterator[opensearchpy.OpenSearch]:
    client = opensearchpy.OpenSearch(node.endpoint, timeout=60, max_retries=0)
    yield client
    client.close()


def test_the_url_is_one_of_a_backend(node: LocalOpenSearch) -> None:
    url = BackendUrl.parse(node.url_of("case-17"))
    assert (url.scheme, url.database) == ("opensearch+http", "case-17")
    assert [(host.name, host.port) for host in url.hosts] == [(node.host, node.port)]
    assert BackendUrl.parse(node.url).database == "datalayer"


def test_kill9_and_start_keep_documents_that_no_refresh_has_shown(
    node: LocalOpenSearch, client: opensearchpy.OpenSearch
) -> None:
    client.indices.create(index="kill9", body={"settings": {"number_of_replicas": 0, "refresh_interval": "-1"}})
    for number in range(50):
        client.index(index="kill9", body={"number": number}, id=str(number))
    pid = node.pid
    node.kill9()
    assert look(pid) is None
    assert is_free(node.host, node.port)
    with pytest.raises(opensearchpy.ConnectionError):
        client.info()
    node.start()
    client.indices.refresh(index="kill9")
    assert client.count(index="kill9")["count"] == 50


def test_an_index_is_made_on_purpose_only(client: opensearchpy.OpenSearch) -> None:
    with pytest.raises(opensearchpy.NotFoundError, match="index_not_found"):
        client.index(index="misspelt", body={"number": 1})


def test_plugins_are_there(client: opensearchpy.OpenSearch) -> None:
    client.indices.create(index="source", body={"settings": {"number_of_replicas": 0}})
    client.indices.create(index="target", body={"settings": {"number_of_replicas": 0}})
    client.index(index="source", body={"number": 1}, id="1", version=7, version_type="external", refresh=True)
    with pytest.raises(opensearchpy.ConflictError):
        client.index(index="source", body={"number": 2}, id="1", version=7, version_type="external")
    copied = client.reindex(
        body={
            "source": {"index": "source"},
            "dest": {"index": "target"},
            "script": {"source": "ctx._source.number += 1"},
        },
        refresh=True,
    )
    assert copied["created"] == 1
    assert client.get(index="target", id="1")["_source"] == {"number": 2}


def test_pause_hangs_and_resume_answers(node: LocalOpenSearch, client: opensearchpy.OpenSearch) -> None:
    client.info()
    node.pause()
    try:
        with pytest.raises(opensearchpy.ConnectionTimeout):
            client.info(request_timeout=0.5)
    finally:
        node.resume()
    assert client.info()["version"]["number"] == "2.19.5"


def test_a_given_server_is_used_and_not_steered(node: LocalOpenSearch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPENSEARCH_VARIABLE, node.url)
    with Servers() as servers:
        given = servers.opensearch()
        assert given.endpoint == node.endpoint
        assert given.url_of("case") == node.url_of("case")
        with pytest.raises(NotControllable, match="cannot be killed"):
            given.kill9()
        with pytest.raises(NotControllable, match=OPENSEARCH_VARIABLE):
            servers.fresh_opensearch("own")


def test_closing_ends_it() -> None:
    with Servers() as servers:
        node = servers.fresh_opensearch("closed")
        node.stop()
        assert not node.running
        node.start()
        pid, folder = node.pid, servers._folder
        assert folder is not None
        assert folder.exists()
    assert look(pid) is None
    assert not folder.exists()
