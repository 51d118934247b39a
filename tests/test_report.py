"""The report of a run: well-formed, self-contained, complete, and safe against what files may hold."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from rnnc.recipes import figures, report, rundata
from rnnc.recipes import page as page_module

HOSTILE = "<script>alert('x')</script>"
EXAMPLE = "<script>a&b"  # a file name may hold anything but a slash
DIGITS = {"si_sdr_db": 2, "sdr_db": 2, "pesq_wb": 2, "stoi": 3, "estoi": 3}
NOISY = {"si_sdr_db": 4.013, "sdr_db": 4.207, "pesq_wb": 1.432, "stoi": 0.8114, "estoi": 0.6523}
ENHANCED = {"si_sdr_db": 9.851, "sdr_db": 10.334, "pesq_wb": 1.978, "stoi": 0.8627, "estoi": 0.7361}
RATE_HZ = 16_000


def estimate(mean: float, width: float, undefined: int = 0) -> dict:
    return {
        "mean": mean,
        "low": mean - width,
        "high": mean + width,
        "n": 100 - undefined,
        "undefined": undefined,
    }


def layer(name: str, kind: str, shape: str, parameters: int, elementwise: int, ram: int) -> dict:
    costs = {
        "parameters": parameters,
        "bytes": 4 * parameters,
        "macs": parameters,
        "elementwise": elementwise,
    }
    return {"name": name, "kind": kind, "shape": shape, **costs, "ram_bytes": ram}


def model() -> dict:
    layers = [
        layer("lstm0", "lstm", "128 -> 256", 394_240, 2816, 2048),
        layer("lstm1", "lstm", "256 -> 256", 525_312, 2816, 2048),
        layer(HOSTILE, "dense", "256 -> 128", 32_896, 128, 512),
    ]
    total = sum(row["parameters"] for row in layers)
    sums = {"parameters": total, "bytes": 4 * total, "macs_per_frame": total}
    return {"name": HOSTILE, **sums, "frames_per_second": 62.5, "layers": layers}


def scores() -> dict:
    per_snr = [
        {
            "snr_db": snr,
            "n": 20,
            "noisy": {key: mean + snr * 0.011 for key, mean in NOISY.items()},
            "enhanced": {key: mean + snr * 0.007 for key, mean in ENHANCED.items()},
        }
        for snr in (-5, 0, 5, 10, 15)
    ]
    return {
        "noisy": {key: estimate(mean, 0.0413, 3) for key, mean in NOISY.items()},
        "enhanced": {key: estimate(mean, 0.0527, 3) for key, mean in ENHANCED.items()},
        "gain": {key: estimate(ENHANCED[key] - NOISY[key], 0.0311) for key in NOISY},
        "per_snr": per_snr,
    }


def result() -> dict:
    return {
        "commit": "0123456789abcdef",
        "config_sha256": "ab" * 32,
        "command": "python -m rnnc.recipes.enhance train --set train.steps=5000",
        "seed": 0,
        "model": model(),
        "train": {"steps": 5000, "frames_per_s": 50_000.0, "seconds": 754.0, "best_step": 4500},
        "test": scores(),
        "skipped": [{"path": HOSTILE, "reason": "shorter than 1 s & silent"}],
    }


def log_lines() -> str:
    random = np.random.default_rng(0)
    train = [
        {"step": step, "loss": 0.9 * np.exp(-step / 1200) + 0.1 + 0.02 * random.random(), "lr": 1e-3}
        for step in range(10, 5001, 10)
    ]
    valid = [
        {"step": s, "valid": {"loss": 0.9 * np.exp(-s / 1200) + 0.13, "si_sdr_db": 10 - 6 * np.exp(-s / 900),
                              "noisy_si_sdr_db": 4.0}}
        for s in range(500, 5001, 500)
    ]  # fmt: skip
    lines = [json.dumps(line) for line in [*train, *valid, {"event": f"resumed {HOSTILE}", "step": 2000}]]
    return "\n".join([*lines, '{"step": 5010, "lo'])


def sounds(seconds: float) -> dict[str, np.ndarray]:
    """A voice-like signal (gliding harmonics in syllables), its noisy version and one with less noise."""
    random = np.random.default_rng(1)
    t = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    phase = 2 * np.pi * np.cumsum(140 + 30 * np.sin(2 * np.pi * 0.7 * t)) / RATE_HZ
    voice = sum(np.sin(k * phase) / k for k in range(1, 25)) * np.clip(np.sin(2 * np.pi * 2 * t), 0, 1)
    noise = random.standard_normal(t.size)
    return {
        "noisy": 0.1 * voice + 0.05 * noise,
        "enhanced": 0.1 * voice + 0.004 * noise,
        "clean": 0.1 * voice,
    }


def make_run(folder: Path, *, seconds: float = 0.5, names: tuple[str, ...] = (EXAMPLE,)) -> Path:
    (folder / "examples").mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(result()))
    (folder / "log.jsonl").write_text(log_lines())
    (folder / "config.toml").write_text(f'[model]\nname = "{HOSTILE}"\n')
    for name in names:
        for version, audio in sounds(seconds).items():
            soundfile.write(folder / "examples" / f"{name}.{version}.flac", audio, RATE_HZ, subtype="PCM_16")
    examples = [{"name": name, "snr_db": 2.5, "noisy": NOISY, "enhanced": ENHANCED} for name in names]
    (folder / "examples" / "examples.json").write_text(json.dumps(examples))
    return folder


class Page(html.parser.HTMLParser):
    """Checks that every tag is closed in order, and collects attributes and the words of table cells."""

    def __init__(self, source: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: list[str] = []
        self.words: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)
        if self.open and ("td" in self.open or "th" in self.open):
            self.cells.append(data)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return report.write(make_run(tmp_path_factory.mktemp("runs") / "run")).read_text()


@pytest.fixture(scope="module")
def parsed(source) -> Page:
    return Page(source)


def written(value: float, digits: int, signed: bool = False) -> str:
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def test_page_loads_nothing(source, parsed):
    assert "http://" not in source
    assert "https://" not in source
    assert "url(" not in source
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in parsed.tags)
    for _, attributes in parsed.tags:
        for name in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            assert (attributes.get(name) or "data:").startswith("data:")


def test_what_is_seen_or_heard_is_also_named(parsed):
    figure_names = [a.get("aria-label") for tag, a in parsed.tags if tag == "svg" and "aria-hidden" not in a]
    players = [attributes for tag, attributes in parsed.tags if tag == "audio"]
    assert len(figure_names) == 2 + 3 + 1 + 3  # learning, per SNR, colour scale, spectrograms
    assert len(players) == 3
    assert all(figure_names)
    assert all("controls" in player and player["aria-label"] for player in players)
    assert all("scope" in attributes for tag, attributes in parsed.tags if tag == "th")


def test_every_metric_value_is_in_a_table(parsed):
    for version, signed in (("noisy", False), ("enhanced", False), ("gain", True)):
        for key, cell in scores()[version].items():
            assert written(cell["mean"], DIGITS[key], signed) in parsed.cells
            ends = [written(cell[end], DIGITS[key]) for end in ("low", "high")]
            assert " to ".join(ends) in parsed.cells
    assert "3 undefined" in parsed.cells
    for group in scores()["per_snr"]:
        assert f"{written(group['snr_db'], 0)} dB" in parsed.cells
        for version in ("noisy", "enhanced"):
            for key, mean in group[version].items():
                assert written(mean, DIGITS[key]) in parsed.cells


def test_every_cost_is_in_a_table(parsed):
    for row in model()["layers"]:
        for key in ("parameters", "bytes", "macs", "elementwise", "ram_bytes"):
            assert written(row[key], 0) in parsed.cells
    words = "".join(parsed.words)
    assert "59.53 MMAC/s" in words  # 952,448 MACs per frame at 62.5 frames/s


def test_summary_and_origin_hold_the_numbers_of_the_run(parsed):
    words = "".join(parsed.words)
    for phrase in (
        "952,448 parameters in 3.81 MB",
        "SI-SDR rises from 4.01 to 9.85 dB (+5.84; 95\u00a0% interval 5.81 to 5.87)",
        "5,000 steps in 12 min 34 s",
        result()["command"],
        result()["commit"],
        "best step 4,500",
        "Left out: 1 line of log.jsonl that could not be read",
        "400 averages over 500 log lines",
    ):
        assert phrase in words


def test_hostile_names_stay_words(source, parsed):
    assert "<script" not in source
    words = "".join(parsed.words)
    assert words.count(HOSTILE) >= 5  # title, event, layer, skipped file, configuration
    assert EXAMPLE in words


def test_same_folder_gives_same_bytes_and_leaves_no_draft(tmp_path):
    run = make_run(tmp_path / "run")
    before = sorted(run.iterdir())
    first = report.write(run).read_bytes()
    assert report.write(run).read_bytes() == first
    assert sorted(run.iterdir()) == sorted([*before, run / "report.html"])


def test_empty_run_names_what_is_missing(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    words = "".join(Page(report.write(tmp_path).read_text()).words)
    for name in (
        "“model”",
        "“train”",
        "“test”",
        "“skipped”",
        "per SNR",
        "log.jsonl",
        "config.toml",
        "examples.json",
    ):
        assert name in words, name
    assert "not recorded" in words


@pytest.mark.parametrize("section", ["model", "train", "test", "skipped"])
def test_one_missing_section_is_named(tmp_path, section):
    run = make_run(tmp_path / "run", names=())
    (run / "result.json").write_text(json.dumps({k: v for k, v in result().items() if k != section}))
    assert f"no section “{section}”" in "".join(Page(report.write(run).read_text()).words)


def test_partial_numbers_do_not_stop_the_report(tmp_path):
    run = make_run(tmp_path / "run", names=())
    cell = {"mean": None, "low": float("nan"), "high": float("inf"), "n": 0, "undefined": 100}
    partial = {"model": {"layers": [{"name": "a"}]}, "train": {"steps": 1}, "skipped": [],
               "test": {"enhanced": {"pesq_wb": cell}, "per_snr": [{"snr_db": 0}]}}  # fmt: skip
    (run / "result.json").write_text(json.dumps(partial))
    (run / "log.jsonl").write_text('{"step": 1, "loss": NaN}\n{"step": 2, "valid": {"loss": null}}\n[1]\n')
    words = "".join(Page(report.write(run).read_text()).words)
    assert "n/a" in words
    assert "Loss: log.jsonl holds no value of it" in words


def test_missing_and_broken_sounds_are_named(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "examples" / f"{EXAMPLE}.noisy.flac").unlink()
    (run / "examples" / f"{EXAMPLE}.clean.flac").write_bytes(b"no sound")
    page = Page(report.write(run).read_text())
    words = "".join(page.words)
    assert f"there is no file {EXAMPLE}.noisy.flac" in words
    assert f"{EXAMPLE}.clean.flac is not readable as audio" in words
    assert sum(tag == "audio" for tag, _ in page.tags) == 1


def test_examples_beyond_the_size_limit_are_named(tmp_path, monkeypatch):
    run = make_run(tmp_path / "run", names=("first", "second"))
    monkeypatch.setattr(report, "MAX_BYTES", 150_000)
    page = report.write(run)
    assert page.stat().st_size < 150_000
    words = "".join(Page(page.read_text()).words)
    assert "Left out, to keep this file small: second." in words


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "result.json: not JSON .* allowed: one JSON object"),
        ("[]", "result.json: given list, allowed: a JSON object"),
        ('{"test": 3}', "test: given int, allowed: a JSON object"),
        ('{"skipped": {}}', "skipped: given dict, allowed: a list of JSON objects"),
        ('{"train": {"steps": "many"}}', "steps: given 'many', allowed: a number"),
    ],
)
def test_unreadable_result_is_refused(tmp_path, text, message):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        report.write(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_missing_folder_and_missing_result_are_refused(tmp_path):
    with pytest.raises(ValueError, match="no such folder; allowed: the folder of a run"):
        report.write(tmp_path / "none")
    with pytest.raises(ValueError, match=r"result.json: .*; allowed: a JSON file"):
        report.write(tmp_path)


def test_example_outside_its_folder_is_refused(tmp_path):
    run = make_run(tmp_path / "run", names=())
    (run / "examples" / "examples.json").write_text('[{"name": "../secret"}]')
    with pytest.raises(ValueError, match=r"examples.json: name '../secret', allowed: the plain name"):
        report.write(run)


def test_power_puts_a_tone_into_its_bin():
    t = np.arange(RATE_HZ) / RATE_HZ
    power = figures.power(np.sin(2 * np.pi * 1000 * t), RATE_HZ)
    assert power.shape == (63, 257)  # 16 ms hop over 1 s, both ends included; 512-point transform
    assert np.all(power[2:-2].argmax(axis=1) == 32)  # 1000 Hz / 31.25 Hz per bin


def test_words_stand_left_in_heads_and_cells_alike():
    table = page_module.table("t", ["a", "b", "c"], [page_module.row("x", "y", "1", words=2)], words=2)
    assert re.findall(r'<th scope="col" class="(\w+)">', table) == ["text", "text", "number"]
    assert '<td class="text">y</td><td>1</td>' in table


def test_an_axis_reaches_down_to_what_is_given():
    line = figures.Line(style="train", x=[0.0, 1.0], y=[0.001, 1.0])
    options = {"alt": "", "x_label": "", "y_label": "share"}
    assert "share, logarithmic" in figures.plot([line], **options)
    linear = figures.plot([line], **options, y_from=0)
    assert "logarithmic" not in linear
    assert ">0</text>" in linear


def test_plot_of_nothing_is_refused():
    line = figures.Line(style="train", x=[1.0], y=[float("nan")])
    with pytest.raises(ValueError, match="no finite point given"):
        figures.plot([line], alt="", x_label="", y_label="")


def test_resumed_run_keeps_the_later_line_of_a_step(tmp_path):
    run = make_run(tmp_path / "run", names=())
    lines = [{"step": step, "loss": loss} for step, loss in ((1, 9.0), (2, 8.0), (3, 7.0), (2, 6.0))]
    (run / "log.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    log = rundata.read(run).log
    assert log is not None
    assert [(line["step"], line["loss"]) for line in log.train] == [(1, 9.0), (2, 6.0), (3, 7.0)]
