"""The command line as a person uses it: help, results, errors with their exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ray_sr.cli import cli, main
from ray_sr.models import build_generator
from ray_sr.models.weights import save_weights
from ray_sr.recipes.networks import NetworkSpec
from tests.photos import real_photos, write_real_photos


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command, in this process."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.fixture
def weights(tmp_path: Path) -> str:
    network = NetworkSpec.model_validate({"scale": 2, "generator": {"kind": "compact", "convs": 1, "channels": 8}})
    save_weights(tmp_path / "small.safetensors", build_generator(network), network)
    return str(tmp_path / "small.safetensors")


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    def visit(path: list[str], command: object) -> None:
        code, out, _ = run(*path, "--help", capsys=capsys)
        assert code == 0
        assert "Usage: ray-sr" in out
        for name, child in getattr(command, "commands", {}).items():
            visit([*path, name], child)

    visit([], cli)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom ray_sr.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('torch', 'ray', 'pyvips', 'numpy', 'pydantic') if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_doctor_names_versions_and_the_store(capsys: pytest.CaptureFixture[str], tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("RAY_SR_STORE", str(tmp_path))
    code, out, _ = run("doctor", "--json", capsys=capsys)
    facts = json.loads(out)
    assert code == 0
    assert facts["model_store"] == str(tmp_path)
    assert facts["torch"]


def test_recipe_networks_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run("recipes", "show", "srgan-paper-x4", "--networks", "--json", capsys=capsys)
    counts = json.loads(out)
    assert counts["generator"]["trainable"] == 1_547_350
    assert counts["generator"]["parameters"] == counts["generator"]["trainable"] + counts["generator"]["buffers"]
    assert counts["discriminator"]["trainable"] == 23_563_649


def test_recipe_errors_are_all_shown_with_exit_code_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text("name: bad\ngenerator:\n  kind: srresnet\n  block: 3\n  channels: x\npretrain: {steps: -1}\n")
    code, out, err = run("recipes", "check", str(file), capsys=capsys)
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 3
    assert all(line.startswith("error: ") and f"{file}:" in line for line in err.splitlines())


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["recipes", "check", "srgan-papr-x4"], 3, "did you mean 'srgan-paper-x4'"),
        (["recipes", "show", "nowhere.yaml"], 3, "No such file"),
        (["upscale", "x.png", "-n", "nosuchmodel", "--store", "{tmp}"], 5, "the store"),
        (["upscale", "x.png", "-n", "nowhere.safetensors"], 3, "nowhere.safetensors"),
        (["upscale"], 2, "Missing argument"),
        (["upscale", "x.png", "-n", "bicubic", "--overwrite", "--skip-existing"], 2, "exclude each other"),
        (["evaluate", "bicubic"], 2, "--hr FOLDER"),
        (["evaluate", "bicubic", "--hr", "{tmp}/nowhere"], 3, "nowhere"),
        (["report", "{tmp}"], 3, "no run here"),
        (["models", "publish", "{tmp}"], 3, "no run here"),
        (["models", "show", "x", "--store", "{tmp}"], 5, "the store"),
        (["data", "info", "{tmp}"], 3, "manifest.json"),
        (["data", "prepare", "{tmp}/nowhere", "-o", "{tmp}/s"], 3, "no such file or folder"),
        (["data", "prepare", "{tmp}", "-o", "{tmp}/s", "--step", "1"], 2, "--step"),
        (["serve", "-n", "bicubic", "--host", "0.0.0.0"], 2, "--insecure"),
        (["nonsense"], 2, "No such command"),
        (["models", "list", "--store", "/dev/null"], 4, "cannot read the model store /dev/null: Not a directory"),
        (["upscale", "x.png", "-n", "bicubic", "-s", "nan"], 2, "not a finite number"),
        (["upscale", "x.png", "-n", "bicubic", "--denoise", "nan"], 2, "not a finite number"),
        (["train", "-c", "demo", "--plan", "--hourly", "inf"], 2, "not a finite number"),
        (["data", "prepare", "{tmp}", "-o", "{tmp}/s", "--validation", "nan"], 2, "not a finite number"),
        (["tune", "--resume", "-o", "{tmp}"], 3, "no sweep here"),
        (["serve", "-n", "bicubic", "--access-log", "/proc/nowhere/log"], 4, "cannot be written"),
    ],
)
def test_errors_are_one_line_with_a_documented_code(
    arguments: list[str], code: int, text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    got, _, err = run(*(part.format(tmp=tmp_path) for part in arguments), capsys=capsys)
    assert got == code, err
    assert text in err
    assert "Traceback" not in err


@pytest.mark.parametrize("place", ["/proc/nowhere", "{tmp}/file", "{tmp}/file/below"])
@pytest.mark.parametrize("command", ["data prepare {tmp}", "train -c demo", "tune -c demo -s {tmp}/space.yaml"])
def test_places_that_cannot_be_written_are_told_before_ray_starts(
    command: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """These are tests of the fast tier, which fail where a Ray starts."""
    Image.fromarray(real_photos()["coffee"][:120, :160]).save(tmp_path / "coffee.png")
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "space.yaml").write_text("fields: {generator.blocks: {choice: [1, 2]}}")
    before = sorted(tmp_path.iterdir())
    words = f"{command} -o {place}".format(tmp=tmp_path).split()
    code, _, err = run(*words, capsys=capsys)
    assert code == 4, err
    assert "cannot make this folder" in err.splitlines()[-1]
    assert sorted(tmp_path.iterdir()) == before


def test_shards_that_are_not_there_are_told_before_ray_starts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run("train", "-c", "demo", "--data", str(tmp_path), "-o", str(tmp_path / "r"), capsys=capsys)
    assert code == 3
    assert "no manifest.json here" in err
    assert list(tmp_path.iterdir()) == []


def test_upscale_reads_photos_and_names_what_it_cannot(
    weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_real_photos(tmp_path / "photos", side=40)
    (photos / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot much")
    code, out, err = run(
        "upscale", str(photos), "-o", str(tmp_path / "out"), "-n", weights, "--json", capsys=capsys
    )
    result = json.loads(out)
    assert code == 3
    assert (result["done"], result["failed"]) == (4, 1)
    assert "broken.png" in err
    with Image.open(tmp_path / "out" / "coffee_x2.png") as larger:
        assert larger.size == (80, 80)
    again, _, err = run(
        "upscale", str(photos / "coffee.png"), "-o", str(tmp_path / "out"), "-n", weights, capsys=capsys
    )
    assert again == 3
    assert "--overwrite" in err or "exists" in err


def test_evaluate_json_has_the_documented_shape(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "hr"
    folder.mkdir()
    Image.fromarray(real_photos()["coffee"][:120, :160]).save(folder / "coffee.png")
    code, out, _ = run("evaluate", "bicubic", "--hr", str(folder), "--scale", "4", "--json", capsys=capsys)
    result = json.loads(out)
    assert code == 0
    assert {"protocol", "images", "mean", "bicubic"} <= result.keys()
    assert result["mean"].keys() >= {"psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb"}
    assert result["mean"]["psnr_y"] == pytest.approx(result["bicubic"]["psnr_y"], abs=0.02)


def test_import_list_promote_and_export(weights: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = ["--store", str(tmp_path / "store")]
    code, out, _ = run(
        "models", "import", weights, "--name", "mine", "--promote", "best", *store, "--json", capsys=capsys
    )
    assert code == 0
    model = json.loads(out)["model"]
    _, out, _ = run("models", "list", *store, "--json", capsys=capsys)
    assert json.loads(out)["channels"] == {"best": model}
    code, _, err = run("models", "delete", model, *store, capsys=capsys)
    assert code == 5
    assert "promoted" in err
    exported = tmp_path / "copy.safetensors"
    code, _, _ = run("models", "export", "best", "-o", str(exported), *store, capsys=capsys)
    assert code == 0
    assert exported.read_bytes() == Path(weights).read_bytes()


def test_preview_writes_a_contact_sheet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run("data", "preview", "-c", "demo", "-o", str(tmp_path / "sheet.png"), capsys=capsys)
    assert code == 0
    with Image.open(out.strip()) as sheet:
        assert np.asarray(sheet).std() > 20


TOO_SMALL = {
    "evaluate bicubic --hr {folder}": "1x1 is too small to be shrunk 4 times",
    "evaluate bicubic --hr {folder} --scale 2": "1x1 is too small to be shrunk 2 times",
    "data preview -c light-x4 --photos {folder} -o {folder}/sheet.png": "1x1 is too small to be shrunk 4 times",
}


@pytest.mark.parametrize("command", TOO_SMALL)
def test_a_photo_that_is_too_small_is_named(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_real_photos(tmp_path, side=64)
    Image.fromarray(real_photos()["coffee"][:1, :1]).save(tmp_path / "a.png")
    code, out, err = run(*command.format(folder=tmp_path).split(), capsys=capsys)
    assert code == 3, err
    assert f"a.png: {TOO_SMALL[command]}" in out + err
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.usefixtures("ray_local")
def test_photos_that_are_too_small_for_shards_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = write_real_photos(tmp_path / "photos", side=96)
    for name, (height, width) in {"dot": (1, 1), "line": (1, 200), "strip": (200, 95)}.items():
        Image.fromarray(real_photos()["coffee"][:height, :width]).save(photos / f"{name}.png")
    code, out, err = run(
        "data", "prepare", str(photos), "-o", str(tmp_path / "shards"), "--sub-image", "96", "--json", capsys=capsys
    )
    assert code == 3, err
    assert {photo["name"]: photo["reason"].partition(":")[0] for photo in json.loads(out)["left_out"]} == {
        "dot.png": "too small", "line.png": "too small", "strip.png": "too small"
    }  # fmt: skip
    assert "3 of 7 photos cannot be used, they are named above" in err


@pytest.mark.parametrize("source", ["set.parquet", "folder", "broken"])
def test_a_preview_is_of_every_kind_of_photos_that_shards_are_made_of(
    source: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = write_real_photos(tmp_path / "folder", side=64)
    columns = {"image": [path.read_bytes() for path in sorted(photos.iterdir())]}
    pq.write_table(pa.table(columns), tmp_path / "set.parquet")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    sheet = tmp_path / "sheet.png"
    code, _, err = run(
        "data", "preview", "-c", "demo", "--photos", str(tmp_path / source), "-o", str(sheet), capsys=capsys
    )
    assert (code, sheet.exists()) == ((3, False) if source == "broken" else (0, True)), err
    assert source != "broken" or "broken/a.png: not a picture format" in err
