"""The registry of the zoo, and the download of published checkpoints."""

import hashlib
import io

import pytest
from rich.console import Console

from lora_comp import cli, zoo
from lora_comp.commands.zoo import show
from lora_comp.errors import LoraCompError
from lora_comp.reference import SYSTEMS
from lora_comp.weights import write_weights
from lora_comp.zoo import registry


def test_every_file_in_the_package_matches_the_registry():
    assert {entry.path for entry in registry.shipped()} == set(zoo.ROOT.rglob("*.safetensors"))
    for entry in registry.shipped():
        assert (entry.path.stat().st_size, entry.intact) == (entry.bytes, True), "run python -m lora_comp.zoo --write"


def test_shipped_weights_stay_below_24_mb():
    assert sum(entry.bytes for entry in registry.shipped()) < 24e6


def test_a_corrupt_file_is_not_intact(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    path = zoo.codec_path("tic", 1)
    write_weights(path, {}, {"codec": "tic"})
    registry.write()
    assert [entry.intact for entry in registry.shipped()] == [True]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert [entry.intact for entry in registry.shipped()] == [False]


def test_scores_of_earlier_weights_are_not_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(zoo, "ROOT", tmp_path)
    path = zoo.codec_path("tic", 1)
    write_weights(path, {}, {"codec": "tic"})
    registry.write()
    row = '{"curve": [{"setting": 1, "bpp": 0.2, "psnr": 28.0, "sha256": "%s"}]}'
    path.with_name("tic.json").write_text(row % registry.digest(path))
    assert registry.shipped()[0].scores == {"bpp": 0.2, "psnr": 28.0}
    path.with_name("tic.json").write_text(row % hashlib.sha256(b"earlier").hexdigest())
    assert registry.shipped()[0].scores == {}


def test_zoo_lists_shipped_and_published_weights():
    out = io.StringIO()
    show(Console(file=out, width=80))
    for name in ("tic-v", "scenes", "transtic-tic-1..4", "lora_comp-cls", "tic_svdlora"):
        assert name in out.getvalue()


def test_every_published_system_has_a_page():
    entries = registry.published()
    assert len({entry.name for entry in entries}) == len(entries)
    assert {"tic", "tic_svdlora", "transtic", "duic", "alice", "slimmable"} <= {entry.system for entry in entries}
    assert set(SYSTEMS) <= {entry.system for entry in entries}
    assert all(entry.page.startswith("https://github.com/") for entry in entries)
    assert {entry.name for entry in entries if entry.url is None} == {"duic", "slimmable"}


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """Serve one published checkpoint with this content; its SHA-256 is that of b"weights". Returns the cache."""
    monkeypatch.setenv("LORA_COMP_CACHE", str(tmp_path / "cache"))

    def serve(content=b"weights", url=None):
        sha256 = hashlib.sha256(b"weights").hexdigest()[:8]
        (tmp_path / "a.pth.tar").write_bytes(content)
        entry = registry.Published("a", "", "tic", "https://page", url or (tmp_path / "a.pth.tar").as_uri(), sha256)
        monkeypatch.setattr(registry, "published", lambda: [entry])
        return tmp_path / "cache"

    return serve


def test_a_published_checkpoint_is_downloaded_once(serve, tmp_path):
    path = registry.download("a") if serve() else None
    assert path == tmp_path / "cache" / "a.pth.tar" and path.read_bytes() == b"weights"
    (tmp_path / "a.pth.tar").unlink()
    assert registry.download("a") == path


def test_a_wrong_checksum_raises(serve):
    cache = serve(content=b"not the weights")
    with pytest.raises(LoraCompError, match="is not the published file"):
        registry.download("a")
    assert list(cache.iterdir()) == []
    (cache / "a.pth.tar").write_bytes(b"damaged")
    with pytest.raises(LoraCompError, match="delete it"):
        registry.download("a")


def test_without_a_network_the_error_names_the_cache_path(serve, capsys):
    cache = serve(url="http://127.0.0.1:9/a.pth.tar")
    assert cli.command(["zoo", "fetch", "a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot download http://127.0.0.1:9/a.pth.tar" in line and str(cache / "a.pth.tar") in line
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("duic", "no checkpoint of duic was published"),
        ("alice", "needs a browser"),
        ("jpeg", "no published checkpoint"),
    ],
)
def test_checkpoints_that_cannot_be_downloaded_raise(name, message):
    with pytest.raises(LoraCompError, match=message):
        registry.download(name)
