"""`gantool eval` and the scores of a run in training, by real processes."""

from __future__ import annotations

import csv
import io
import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Gantool, start, tiny_config
from PIL import Image
from test_resume import sets, wait_for

from gantool import checkpoint, tables
from gantool.errors import UsageError
from gantool.metrics.scores import Score, best_score, kept_score, read_scores
from gantool.scoring import snapshots_of

EVERY = sets(("eval={num: 600, every: 10, budget: 1.0}", "runtime.snapshot_every=10"))


@pytest.fixture(scope="module")
def scored(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A run of 40 steps that was scored every 10."""
    folder = tmp_path_factory.mktemp("scored")
    process = start("train", tiny_config(folder, data_dir), *EVERY)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return Path(out.strip())


def evaluated(gantool: Gantool, *words: object) -> list[dict[str, Any]]:
    done = gantool("eval", *words, "--format", "json")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def test_scores_during_training_change_no_bit_of_it(scored: Path, gantool: Gantool, tiny: Path, tmp_path: Path) -> None:
    plain = Path(gantool("train", tiny, "--set", "runtime.snapshot_every=10").stdout.strip())
    for step in (10, 20, 30, 40):
        a, _ = checkpoint.load(checkpoint.step_file(scored / "snapshots", step))
        b, _ = checkpoint.load(checkpoint.step_file(plain / "snapshots", step))
        assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert not (plain / "scores").exists()


def test_every_score_is_kept_and_the_best_is_known(scored: Path) -> None:
    scores = read_scores(scored)
    assert [score.step for score in scores] == [10, 20, 30, 40]
    assert len({json.dumps(score.protocol) for score in scores}) == 1
    lowest = min(scores, key=lambda score: score.values["fid"])
    assert best_score(scored) == lowest
    result = json.loads((scored / "result.json").read_text())
    assert result["best"]["step"] == lowest.step and result["best"]["values"] == lowest.values
    assert (scored / result["best"]["snapshot"]).is_file()
    assert result["scores"][0]["step"] == 40
    assert kept_score(scored, lowest.snapshot_digest, lowest.settings) == lowest
    for change in ({"num": 601}, {"metrics": ["fid"]}, {"extractor": "inception"}, {"ci": True}):
        assert not kept_score(scored, lowest.snapshot_digest, lowest.settings | change)
    assert not kept_score(scored, "0" * 64, lowest.settings)
    assert not (scored / "parts").exists()


def test_a_run_means_its_best_and_its_last_snapshot(scored: Path, tmp_path: Path) -> None:
    lowest = best_score(scored)
    assert lowest is not None
    last, best = scored / "snapshots" / "step-00000040.safetensors", Path(lowest.snapshot).name
    assert snapshots_of([scored]) == (list(dict.fromkeys([scored / "snapshots" / best, last])), [])
    assert snapshots_of([last]) == ([last], [])
    (tmp_path / "empty").mkdir()
    found, without = snapshots_of([Path(f"{scored}/snapshots/*"), Path(f"{tmp_path}/*")])
    assert len(found) == 4 and len(without) == 1 and "empty" in without[0]
    with pytest.raises(UsageError, match="nothing matches"):
        snapshots_of([tmp_path / "no*"])


def test_scores_have_a_share_of_the_time(gantool: Gantool, tiny: Path) -> None:
    done = gantool("train", tiny, *sets(("eval={num: 100, every: 10, budget: 0.0}",)))
    assert done.stderr.count("not scored, it would take more than eval.budget of the time") == 2
    steps = [score.step for score in read_scores(Path(done.stdout.strip()))]
    assert steps == [10, 40]  # what a score costs is known after the first; the last one always is


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ("{extractor: inception}", "no Inception weights"),
        ("{extractor: 'torchvision:resnet18'}", "resnet18"),
        ("{extractor: 'torchvision:resnet19'}", "resnet18"),
    ],
)
def test_what_cannot_be_scored_is_known_before_the_training(
    settings: str, text: str, gantool: Gantool, tiny: Path, tmp_path: Path
) -> None:
    environment = {"TORCH_HOME": str(tmp_path), "GANTOOL_WEIGHTS": "", "TMPDIR": str(tmp_path)}
    wrong = gantool("train", tiny, "--set", f"eval={settings}", **environment)
    assert wrong.returncode == 2 and text in wrong.stderr and "Traceback" not in wrong.stderr
    assert not list(tmp_path.glob("runs/*/snapshots/*")) and not list(tmp_path.glob("runs/*/checkpoints/*"))


def test_a_signal_while_scoring_in_training_saves_and_goes_on(
    scored: Path, gantool: Gantool, tiny: Path, tmp_path: Path
) -> None:
    process = start("train", tiny, *sets(("eval={num: 100000, every: 10, budget: 1.0}", "runtime.snapshot_every=10")))
    wait_for(lambda: list(tmp_path.glob("runs/*/snapshots/step-00000010.safetensors")) or process.poll() is not None)
    (run,) = (tmp_path / "runs").iterdir()
    wait_for(lambda: json.loads((run / "status.json").read_text())["message"] == "scoring")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 75 and "stopped by SIGTERM at step 10, everything is saved" in err
    assert gantool("train", run, *EVERY).returncode == 0
    assert [score.step for score in read_scores(run)] == [10, 20, 30, 40]
    for one, other in zip(read_scores(run), read_scores(scored), strict=True):
        assert one.values == other.values and one.snapshot_digest == other.snapshot_digest


def test_ranks_find_the_values_of_one_process(scored: Path, gantool: Gantool) -> None:
    words = (scored / "snapshots/step-00000040.safetensors", "--num", 1500, "--metrics", "fid,is,kid,precision_recall")
    (one,), (two,) = evaluated(gantool, *words), evaluated(gantool, *words, "--nproc", 2)
    assert (one["num_ranks"], two["num_ranks"]) == (1, 2)
    assert one["values"] == two["values"] and one["protocol"] == two["protocol"] and one["real"] == two["real"]


def test_ranks_score_while_they_train(gantool: Gantool, tiny: Path) -> None:
    done = gantool("train", tiny, "--nproc", 2, *EVERY)
    assert done.returncode == 0, done.stderr
    scores = read_scores(Path(done.stdout.strip()))
    assert [score.step for score in scores] == [10, 20, 30, 40] and {score.num_ranks for score in scores} == {2}


def test_images_of_other_origin_get_the_scores_of_the_snapshot_they_came_from(
    scored: Path, gantool: Gantool, tmp_path: Path
) -> None:
    snapshot = scored / "snapshots/step-00000040.safetensors"
    metrics = ("--metrics", "fid,is,kid,density_coverage,overfit", "--ci")
    (expected,) = evaluated(gantool, snapshot, "--num", 300, *metrics)
    for name in ("x.npz", "folder"):
        assert gantool("sample", "--ckpt", snapshot, "--num", 300, "--out", tmp_path / name).returncode == 0
    names = [word for name in ("x.npz", "folder") for word in ("--images", tmp_path / name)]
    for found in evaluated(gantool, *names, "--reference", scored, *metrics):
        assert found["values"] == expected["values"] and found["real"] == expected["real"]
        assert found["protocol"] == expected["protocol"] and found["step"] is None


def test_tables_for_eyes_and_for_programs(scored: Path, gantool: Gantool, tmp_path: Path) -> None:
    words = ("eval", scored / "snapshots/step-00000040.safetensors", "--num", 100)
    table = gantool(*words, "--metrics", "fid,kid", "--ci", "--out", tmp_path / "x.csv").stdout
    assert "step 40" in table and "real test images" in table and "±" in table and "fid|classifier" in table
    (row,) = csv.DictReader(io.StringIO((tmp_path / "x.csv").read_text()))
    assert float(row["fid_low"]) < float(row["fid"]) < float(row["fid_high"])
    latex = gantool(*words, "--format", "latex").stdout
    assert latex.startswith("\\begin{tabular}") and "$\\pm$" in latex and "\\\\\n" in latex
    many = gantool("eval", f"{scored}/snapshots/*", "--num", 50).stdout
    assert sum("step " in line for line in many.splitlines()) == 4


@pytest.mark.parametrize(
    ("words", "text"),
    [
        ((), "give either snapshots or --images"),
        (("--images", "x"), "--images needs --reference"),
        (("RUN", "--reference", "x"), "--reference goes with --images"),
        (("RUN", "--metrics", "fid,fud"), "found 'fud', expected one of fid"),
        (("RUN", "--extractor", "vgg"), "found 'vgg', expected one of classifier"),
        (("RUN", "--protocol", "clean"), "clean is a protocol of the Inception network, not of classifier"),
        (("RUN", "--metrics", "sfid"), "sfid is defined for the Inception network"),
        (("RUN", "--per-class"), "not class-conditional"),
        (("RUN", "--metrics", "classification"), "not class-conditional"),
        (("RUN", "--out", "x.txt"), "expected a name ending in .json"),
        (("--images", "x", "--reference", "RUN", "--num", "5"), "--num has no effect with --images"),
        (("--images", "nowhere", "--reference", "RUN"), "nowhere"),
        (("--images", "grey", "--reference", "RUN"), "both must have the same channels"),
        (("--images", "large", "--reference", "RUN"), "the classifier was trained on 8x8"),
        (("--images", "large", "--reference", "grey"), "no packed dataset"),
        (("--images", "one", "--reference", "RUN"), "2 or more"),
    ],
)
def test_wrong_words_are_one_message(
    words: tuple[str, ...], text: str, scored: Path, gantool: Gantool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, shape in (("grey", (8, 8)), ("large", (16, 16, 3)), ("one", (8, 8, 3))):
        (tmp_path / name).mkdir()
        for number in range(1 if name == "one" else 3):
            Image.fromarray(np.full(shape, 60 * number, np.uint8)).save(tmp_path / name / f"{number}.png")
    wrong = gantool("eval", *(str(scored) if word == "RUN" else word for word in words))
    assert wrong.returncode in (1, 2) and wrong.stdout == ""
    assert text in wrong.stderr.replace("\n", " ") and "Traceback" not in wrong.stderr


def test_scores_of_several_protocols_say_which_is_whose(capsys: pytest.CaptureFixture[str]) -> None:
    found = [
        Score.model_construct(
            snapshot=f"runs/{name}/snapshots/step-00000010.safetensors",
            step=10,
            values={"fid": 1.0 + number},
            protocol={"fid": f"fid|n={number // 2}"},
            real=None,
            warnings=(),
        )
        for number, name in enumerate("abcd")
    ]
    tables.print_scores(found, "table", None)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in lines[1:5]] == [
        [name, "step", "10", mark] for name, mark in zip("abcd", ("(1)", "(1)", "(2)", "(2)"), strict=True)
    ]
    assert lines[-2:] == ["(1): fid|n=0", "(2): fid|n=1"]
    tables.print_scores(found[:2], "table", None)
    assert "(1)" not in capsys.readouterr().out
    same = found[0].model_copy(update={"snapshot": "elsewhere/a/snapshots/step-00000010.safetensors"})
    other = found[2].model_copy(update={"real": {"fid": 9.0}})
    tables.print_scores([found[0].model_copy(update={"real": {"fid": 8.0}}), same, other], "markdown", None)
    headers, _, values = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[:3])
    assert headers == [
        "metric",
        f"{found[0].snapshot} (1)",
        f"{same.snapshot} (1)",
        "c step 10 (2)",
        "real test images (1)",
        "real test images (2)",
    ]
    assert values == ["fid", "1.000", "1.000", "3.000", "8.000", "9.000"]
    both = [score.model_copy(update={"real": {"fid": real}}) for score, real in ((found[0], 8.0), (found[1], 7.0))]
    tables.print_scores(both, "markdown", None)
    headers, _, values = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[:3])
    assert headers[3:] == ["real test images", f"real test images beside {found[1].snapshot}"]
    assert values[3:] == ["8.000", "7.000"]
