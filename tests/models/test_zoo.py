"""Models by name: fetched from a server, pinned, verified, never by the way."""

import ast
import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from densebatch.models import zoo
from densebatch.models.model import find_model, load_network
from tests.helpers.checkpoint_files import WIDTHS, Bomb, make_network, make_state
from tests.helpers.file_server import make_certificate, serve
from tests.helpers.run_files import call_main, write_tiff
from tests.helpers.sam_files import make_sam


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DENSEBATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "localhost")
    return tmp_path / "cache" / "models"


def to_bytes(tmp_path, content, name="made"):
    torch.save(content, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).unlink()
    return data


@pytest.fixture
def network(tmp_path):
    """A checkpoint as old as Cellpose's own: it says nothing of diameters."""
    return to_bytes(tmp_path, {k: v for k, v in make_state().items() if "diam" not in k})


@pytest.fixture
def other(tmp_path):
    return to_bytes(tmp_path, make_network(seed=1).state_dict())


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def run(capsys, *arguments):
    code, out, err = call_main(capsys, "models", *arguments)
    assert (code, err) == (0, ""), err
    return out


def refused(capsys, *arguments):
    code, out, err = call_main(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err.removeprefix("error: ").strip()


def refused_fetch(capsys, *arguments):
    return refused(capsys, "models", "fetch", *arguments)


def read_stock():
    """Its list of models, and the address that it takes each from; importing it takes seconds."""
    spec = importlib.util.find_spec("cellpose")
    if spec is None:
        pytest.skip("cellpose is not installed")
    source = Path(spec.submodule_search_locations[0], "models.py").read_text()
    wanted = []
    for node in ast.parse(source).body:
        names = [t.id for t in getattr(node, "targets", []) if isinstance(t, ast.Name)]
        if getattr(node, "name", None) == "model_path" or {"_MODEL_URL", "MODEL_NAMES"} & {*names}:
            wanted.append(node)
    stock = {"cache_model_path": lambda name: f"{stock['_MODEL_URL']}/{name}"}
    exec(compile(ast.Module(wanted, []), "cellpose/models.py", "exec"), stock)
    return {name: stock["model_path"](name) for name in stock["MODEL_NAMES"]}


def test_names_and_addresses_are_those_of_stock():
    expected = read_stock()
    transformers = [name for name in expected if "transformer" in name]
    assert len(transformers) == 2
    for name in transformers:
        del expected[name]
    found = {name: model.url for name, model in zoo.KNOWN.items()}
    assert found.pop("train7") == "doi:10.5281/zenodo.10668824"
    for name in ("cpsam", "cpsam_v2"):  # of cellpose 4
        assert found.pop(name).endswith(f"/mouseland/cellpose-sam/resolve/main/{name}")
        assert zoo.KNOWN[name].kind == "cellpose-sam"
    assert found == expected


def test_fetched_model_is_used_by_its_name(capsys, cache, network):
    with serve({"mirror/cyto3": network}) as server:
        out = run(capsys, "fetch", "cyto3", "--url", f"{server.url}/mirror/cyto3")
        assert out.startswith("cyto3  fetched and pinned, ")
        assert f"sha256 {sha256(network)}\n" in out
        again = run(capsys, "fetch", "cyto3", "--url", f"{server.url}/mirror/cyto3")
        assert again.startswith("cyto3  already there, unchanged, ")
        assert server.asked == ["mirror/cyto3"]
        url = f"{server.url}/mirror/cyto3"
    assert sorted(p.name for p in cache.iterdir()) == ["cyto3", "cyto3.lock.json"]
    lock = json.loads((cache / "cyto3.lock.json").read_text())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", lock["fetched"])
    assert lock == {
        "name": "cyto3",
        "url": url,
        "sha256": sha256(network),
        "n_bytes": len(network),
        "fetched": lock["fetched"],
    }
    model = find_model("cyto3")
    assert (model.name, model.path, model.widths) == ("cyto3", str(cache / "cyto3"), WIDTHS)
    assert (model.diameter_px, model.default_diameter_px, model.nuclei) == (30, 30, True)
    assert model.card == {"source": url, "fetched": lock["fetched"]}
    expected = make_network().state_dict()["output.2.weight"]
    assert torch.equal(load_network(model).output[2].weight, expected)


def test_what_stock_knows_by_name_and_the_file_does_not_say(tmp_path, capsys, network, other):
    lab = to_bytes(tmp_path, make_state(diam_labels=torch.tensor([13.0])))
    with serve({"n": network, "c": other, "l": lab}) as server:
        run(capsys, "fetch", "nuclei", "--url", f"{server.url}/n")
        run(capsys, "fetch", "cyto", "--url", f"{server.url}/c")
        run(capsys, "fetch", "train7", "--url", f"{server.url}/l")
    nuclei, cyto, train7 = (find_model(name) for name in ("nuclei", "cyto", "train7"))
    assert (nuclei.diameter_px, nuclei.default_diameter_px, nuclei.nuclei) == (17, 17, False)
    # stock rescales to 30 px for its own models, from the file's labels
    assert (cyto.diameter_px, cyto.default_diameter_px, cyto.nuclei) == (30, 15, True)
    assert (train7.diameter_px, train7.default_diameter_px, train7.nuclei) == (15, 13, False)
    # and import keeps it
    run(capsys, "import", "nuclei", "-o", tmp_path / "n.safetensors")
    imported = find_model(str(tmp_path / "n.safetensors"))
    assert (imported.diameter_px, imported.default_diameter_px) == (17, 17)
    assert imported.card["source"] == nuclei.card["source"]


def test_segmenting_never_fetches(tmp_path, capsys, cache, network):
    slide = write_tiff(tmp_path / "a.ome.tif", np.ones((1, 90, 120), np.uint8), ["CD3"])
    with serve({"cyto3": network}) as server, pytest.MonkeyPatch.context() as patch:
        known = zoo.KnownModel("cyto3", f"{server.url}/cyto3")
        patch.setitem(zoo.KNOWN, "cyto3", known)
        told = refused(capsys, "segment", slide, tmp_path / "out", "--membrane", "CD3",
                       "--model", "cyto3", "--workers", "0")  # fmt: skip
        assert server.asked == []
        assert told == (
            f"model 'cyto3' has not been fetched to {cache}; fetch it with "
            "`densebatch models fetch cyto3`"
        )
        assert not (tmp_path / "out").exists()
        assert not cache.exists()
        run(capsys, *told.split("`")[1].split()[2:])  # the command that it names
    assert find_model("cyto3").sha256 == sha256(network)


def test_known_name_is_not_taken_for_a_file(tmp_path, capsys, monkeypatch, network):
    monkeypatch.chdir(tmp_path)
    Path("cyto3").write_bytes(network)
    told = refused(capsys, "models", "show", "cyto3")
    assert told.endswith("`densebatch models fetch cyto3`, or name the file here ./cyto3")
    assert json.loads(run(capsys, "show", "./cyto3", "--json"))["path"] == str(tmp_path / "cyto3")


def test_changed_file_is_refused_with_both_digests(capsys, cache, network, other):
    with serve({"a": network}) as server:
        run(capsys, "fetch", "cyto2", "--url", f"{server.url}/a")
        (cache / "cyto2").write_bytes(other)
        for arguments in (("models", "show", "cyto2"), ("models", "fetch", "cyto2")):
            told = refused(capsys, *arguments)
            assert told.startswith(f"{cache / 'cyto2'}: has sha256 {sha256(other)}, but 'cyto2' is")
            assert f"pinned to {sha256(network)} (fetched " in told
        assert (cache / "cyto2").read_bytes() == other
        assert re.search(r"cyto2 +CHANGED +/", run(capsys))
        assert server.asked == ["a"]
        # as the sentence says
        (cache / "cyto2").unlink()
        (cache / "cyto2.lock.json").unlink()
        run(capsys, "fetch", "cyto2", "--url", f"{server.url}/a")
    assert find_model("cyto2").sha256 == sha256(network)


def test_pin_outlives_the_file(capsys, cache, network, other):
    with serve({"a": network, "b": other}) as server:
        run(capsys, "fetch", "CPx", "--url", f"{server.url}/a")
        pinned = (cache / "CPx.lock.json").read_bytes()
        (cache / "CPx").unlink()
        told = refused(capsys, "models", "show", "CPx")
        assert "has not been fetched" in told
        told = refused_fetch(capsys, "CPx", "--url", f"{server.url}/b")
        assert told.startswith(f"{server.url}/b: has sha256 {sha256(other)}, but 'CPx' is pinned")
        assert sha256(network) in told
        assert [p.name for p in cache.iterdir()] == ["CPx.lock.json"]
        run(capsys, "fetch", "CPx", "--url", f"{server.url}/a")
    assert (cache / "CPx.lock.json").read_bytes() == pinned


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"name": 1}'])
def test_damaged_lock_is_no_pin(capsys, cache, network, content):
    with serve({"a": network}) as server:
        run(capsys, "fetch", "CP", "--url", f"{server.url}/a")
    (cache / "CP.lock.json").write_text(content)
    for command in ("show", "fetch"):
        told = refused(capsys, "models", command, "CP")
        assert told == (
            f"{cache / 'CP.lock.json'}: is not a lock file; remove it and fetch 'CP' again"
        )


def test_lock_of_another_model_is_no_pin(capsys, cache, network):
    with serve({"a": network}) as server:
        run(capsys, "fetch", "CP", "--url", f"{server.url}/a")
    shutil.copy(cache / "CP.lock.json", cache / "CPx.lock.json")
    told = refused(capsys, "models", "show", "CPx")
    assert "is not the lock file of 'CPx'" in told


def test_failed_fetch_is_one_sentence_and_leaves_nothing(tmp_path, capsys, network):
    special = {"cut": "truncate", "busy": 503, "loop": "redirect:/loop", "dead": "cut"}
    with serve({"cut": network, "busy": b"", "page": b"<html>log in</html>"}, special) as server:
        host = server.url.removeprefix("http://")
        for path, reason in {
            "gone": f"cannot be fetched ({host} answers 404 Not Found)",
            "busy": f"cannot be fetched ({host} answers 503 Service Unavailable)",
            "cut": "cannot be fetched (the connection broke off before the whole file came)",
            "dead": f"cannot be fetched (no connection to {host}, or it was lost: offline?)",
            "loop": "cannot be fetched (Exceeded 30 redirects.)",
            "page": "is refused, and nothing is kept (model cyto: cannot be read as weights (",
        }.items():
            told = refused_fetch(capsys, "cyto", "--url", f"{server.url}/{path}")
            assert told.startswith(f"{server.url}/{path}: {reason}"), told
            assert not (tmp_path / "cache").exists()
    told = refused_fetch(capsys, "cyto", "--url", f"{server.url}/page")
    reason = f"no connection to {host}, or it was lost: offline?"
    assert told == f"{server.url}/page: cannot be fetched ({reason})"
    told = refused_fetch(capsys, "cyto", "--url", "ftp://a/b")
    assert told == "ftp://a/b: accepted are addresses that begin with https://"
    assert not (tmp_path / "cache").exists()


def test_hostile_file_is_not_kept(tmp_path, capsys, cache, network):
    trap = tmp_path / "executed"
    files = {
        "pickle": to_bytes(tmp_path, make_state(extra=Bomb(trap))),
        "sam": to_bytes(tmp_path, {"W2": torch.zeros(3)}),
        "whole-sam": to_bytes(tmp_path, make_sam().state_dict()),
        "three": to_bytes(
            tmp_path,
            make_state(downsample__down__res_down_0__proj__1__weight=torch.zeros(4, 3, 1, 1)),
        ),
        "good": network,
    }
    told = {
        "pickle": "cannot be read as weights (",
        "sam": "is a Cellpose-SAM (4.x) network, but weights ",
        "whole-sam": "is of Cellpose-SAM (4.x) networks; accepted are Cellpose 1-3 networks)",
        "three": "takes 3 input channels; accepted are 2)",
    }
    with serve(files) as server:
        for name, reason in told.items():
            url = f"{server.url}/{name}"
            expected = f"{url}: is refused, and nothing is kept (model cyto: {reason}"
            assert refused_fetch(capsys, "cyto", "--url", url).startswith(expected)
            assert not cache.exists()
        run(capsys, "fetch", "cyto", "--url", f"{server.url}/good")  # nothing was pinned
    assert not trap.exists()


def test_names_that_are_not_fetched(capsys):
    told = refused_fetch(capsys, "cyto9")
    assert told == f"model 'cyto9' is not known; accepted are {', '.join(zoo.KNOWN)}"
    told = refused_fetch(capsys, "dense-small")
    assert told == "model 'dense-small' is bundled: there is nothing to fetch"


def test_cache_that_cannot_be_written(tmp_path, capsys, network):
    (tmp_path / "cache").write_text("in the way")
    with serve({"a": network}) as server:
        told = refused_fetch(capsys, "cyto", "--url", f"{server.url}/a")
    lock = tmp_path / "cache/models/cyto.lock.json"
    assert told == f"{lock}: cannot be read (Not a directory)"
    (tmp_path / "cache").unlink()
    (tmp_path / "cache/models/cyto").mkdir(parents=True)
    with serve({"a": network}) as server:
        told = refused_fetch(capsys, "cyto", "--url", f"{server.url}/a")
    assert told == f"{tmp_path / 'cache/models/cyto'}: cannot be written (Is a directory)"


def test_list_tells_where_models_are(capsys, cache, network):
    with serve({"a": network}) as server:
        run(capsys, "fetch", "LC1", "--url", f"{server.url}/a")
    out = run(capsys)
    assert out == run(capsys, "list")
    rows = {line.split()[0]: re.split(r"  +", line)[1:] for line in out.splitlines()}
    assert set(rows) == {"dense", "dense-nuclei", "dense-small", "dense-tiny", *zoo.KNOWN}
    state, where = rows["dense-small"]
    assert state == "bundled"
    assert Path(where).is_file()
    assert rows["LC1"] == ["fetched", str(cache / "LC1")]
    assert rows["LC2"] == ["not fetched", "https://www.cellpose.org/models/LC2"]


def test_platform_cache_by_default(tmp_path, monkeypatch):
    monkeypatch.delenv("DENSEBATCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = zoo.models_folder()
    assert folder.is_relative_to(tmp_path)
    assert folder.parts[-2:] == ("densebatch", "models")


# records by their doi


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    if shutil.which("openssl") is None:
        pytest.skip("no openssl here to make a certificate with")
    return make_certificate(tmp_path_factory.mktemp("tls") / "made")


def trust(monkeypatch, certificate):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))


@pytest.fixture
def record(monkeypatch, certificate):
    """A function that serves a Zenodo record of files; only doi.org's answer is not real."""
    trust(monkeypatch, certificate)
    monkeypatch.setattr(
        "pooch.downloaders.doi_to_url", lambda doi, **_: f"https://zenodo.org/records/{doi[-8:]}"
    )

    def publish(server, files, md5=None):
        monkeypatch.setattr(
            "pooch.downloaders.ZenodoRepository.base_api_url", f"{server.url}/api/records"
        )
        stated = [
            {
                "key": name,
                "checksum": f"md5:{md5 or hashlib.md5(data).hexdigest()}",
                "links": {"self": f"{server.url}/api/records/10668824/files/{name}/content"},
            }
            for name, data in files.items()
        ]
        document = json.dumps({"id": 10668824, "files": stated}).encode()
        server.files = {
            "api/records/10668824": document,
            **{f"api/records/10668824/files/{n}/content": data for n, data in files.items()},
        }

    return publish


def test_record_of_one_file(capsys, certificate, record, other):
    with serve({}, certificate=certificate) as server:
        record(server, {"Train7": other})
        run(capsys, "fetch", "train7")
    model = find_model("train7")
    assert model.sha256 == sha256(other)
    assert model.card["source"] == "doi:10.5281/zenodo.10668824/Train7"


def test_record_of_several_files_is_asked_about(capsys, cache, certificate, record, other):
    with serve({}, certificate=certificate) as server:
        record(server, {"Train7": other, "README.md": b"hello"})
        told = refused_fetch(capsys, "train7")
        assert told == (
            "doi:10.5281/zenodo.10668824: holds 2 files (README.md, Train7); name the network's "
            "with --url doi:10.5281/zenodo.10668824/FILE"
        )
        assert not cache.exists()
        run(capsys, "fetch", "train7", "--url", "doi:10.5281/zenodo.10668824/Train7")
        assert find_model("train7").sha256 == sha256(other)
        told = refused_fetch(capsys, "cyto", "--url", "doi:10.5281/zenodo.10668824/none")
        assert "File 'none' not found in data archive" in told


def test_record_that_is_wrong(capsys, cache, certificate, record, other):
    with serve({}, certificate=certificate) as server:
        record(server, {"Train7": other}, md5="0" * 32)
        told = refused_fetch(capsys, "train7")
        md5 = hashlib.md5(other).hexdigest()
        assert told == (
            f"doi:10.5281/zenodo.10668824/Train7: came with md5 {md5}, its record states {'0' * 32}"
        )
        for answer in (b"<html>", b"{}", b"[]", b'{"files": [{}]}', b'{"files": 3}'):
            server.files["api/records/10668824"] = answer
            told = refused_fetch(capsys, "train7")
            assert told.startswith("doi:10.5281/zenodo.10668824: cannot be fetched (")
        assert not cache.exists()


def test_cellpose_sam_by_name(tmp_path, capsys, network):
    files = {"cpsam": to_bytes(tmp_path, make_sam().state_dict()), "cyto": network}
    with serve(files) as server:
        told = refused_fetch(capsys, "cpsam", "--url", f"{server.url}/cyto")
        assert told.endswith(
            "(model cpsam: is of Cellpose 1-3 networks; accepted are Cellpose-SAM (4.x) networks)"
        )
        run(capsys, "fetch", "cpsam", "--url", f"{server.url}/cpsam")
    model = find_model("cpsam")
    assert (model.name, model.kind, model.patch_px) == ("cpsam", "cellpose-sam", 64)
    assert (model.diameter_px, model.default_diameter_px, model.nuclei) == (30, 30, True)
    assert model.card["source"].endswith("/cpsam")
    assert load_network(model).inputs == 3
