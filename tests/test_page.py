"""The HTML page of a run: against the run's files, and in a browser."""

import base64
import contextlib
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT
from PIL import Image

from pipeline.run import run
from tools import page

CHROMIUM = next(filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome"])), None)
VOID = {"meta", "link", "img", "input"}


class Reader(HTMLParser):
    """Tables by the id of their caption, and every element's attributes; an AssertionError where tags do not nest."""

    def __init__(self, text: str):
        super().__init__()
        self.elements, self.tables, self.open, self.cell = [], {}, [], None
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows = self.tables.setdefault(attributes["aria-labelledby"].removeprefix("table-"), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("th", "td"):
            self.rows[-1].append("")
        elif tag == "strong":
            self.rows[-1][-1] += "*"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("th", "td", "strong"):
            self.rows[-1][-1] += data

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A folder with what stands in Git of a run, and nothing else."""
    folder = tmp_path_factory.mktemp("run")
    shutil.copy(ROOT / "dvc.lock", folder)
    for name in ("metrics", "data/report"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


@pytest.fixture(scope="module")
def text(ran):
    with contextlib.chdir(ran):
        return page.render()


@pytest.fixture(scope="module")
def read(text):
    return Reader(text)


def metrics(name: str) -> dict:
    return json.loads((ROOT / f"metrics/{name}.json").read_text())


def test_same_run_same_bytes(ran, text, monkeypatch):
    monkeypatch.chdir(ran)
    assert page.render() == text


def test_every_table_is_whole(read):
    assert len(read.tables) == 15
    for rows in read.tables.values():
        assert len(rows) > 2
        assert len({len(row) for row in rows}) == 1
        assert all(row[0] for row in rows)
        assert all(any(cell for cell in row[1:]) for row in rows)


def test_psnr_is_that_of_the_metrics_and_the_best_is_marked(read):
    head, *rows = read.tables["psnr"]
    shown = {(row[0], column): cell for row in rows for column, cell in zip(head[1:], row[1:], strict=True)}
    names = {"ae": "autoencoder", "vae": "VAE", "gan": "GAN"}
    suffixes = {"range": "", "relaxed": ", relaxed", "mean": ", posterior mean"}
    found = {
        (names[prior] + suffixes[constraint], problem.replace("_", " ")): measures["psnr_db"]
        for prior in names
        for constraint, problems in metrics(f"evaluate_{prior}")[prior].items()
        for problem, measures in problems.items()
        if "psnr_db" in measures and not problem.startswith("m_")
    }
    for (method, problem), value in found.items():
        assert shown[method, problem].strip("*") == f"{value:.2f}"
    for problem in head[1:]:
        values = {m: float(c.strip("*").replace("−", "-")) for (m, p), c in shown.items() if p == problem and c}
        best = {m for m, value in values.items() if value == max(values.values())}
        assert {m for (m, p), cell in shown.items() if p == problem and cell.startswith("*")} == best
    assert shown["minimum norm", "blur"].startswith("−")


def test_the_best_is_marked_as_it_prints_and_nothing_where_there_is_nothing():
    frame = pd.DataFrame({"a": [0.124, 0.121, 0.1], "b": [np.nan] * 3, "c": [-3, np.nan, -4.0]}, index=["p", "q", "r"])
    rows = page.cells(frame, [2, 2, 0], frame)["rows"]
    assert rows["p"] == [("0.12", True), ("", False), ("−3", True)]
    assert rows["q"] == [("0.12", True), ("", False), ("", False)]
    assert rows["r"] == [("0.10", False), ("", False), ("−4", False)]


def test_the_marked_samples_are_nearest_to_real_patches(read):
    head, floor, *rows = read.tables["sets"]
    assert floor[0] == "other real patches"
    for name, aim, *cells in zip(head[1:], floor[1:], *(row[1:] for row in rows), strict=True):
        marked = [float(cell[1:]) for cell in cells if cell.startswith("*")]
        distances = [abs(float(cell.strip("*")) - float(aim)) for cell in cells]
        if name != "coverage error":
            assert marked
        for value in marked:
            assert abs(value - float(aim)) == min(distances)


def test_stages_stand_with_what_they_ran_with(text):
    stages = yaml.safe_load((ROOT / "dvc.lock").read_text())["stages"]
    for name, stage in stages.items():
        part = text.split(f"<summary><b>{name}</b>")[1].split("</details>")[0]
        assert stage["cmd"] in part
        for out in stage["outs"]:
            assert f"<dt>{out['path']}</dt><dd><code>{out['md5']}</code></dd>" in part
    vae = stages["train_vae"]["params"]["params.yaml"]["train_vae"]
    part = text.split("<summary><b>train_vae</b>")[1].split("</details>")[0]
    for key, value in vae.items():
        assert f"<dt>train_vae.{key}</dt><dd>{value}</dd>" in part


def test_every_picture_is_inline_and_described(read):
    shown = set()
    for picture in read.named("img"):
        content = base64.b64decode(picture["src"].removeprefix("data:image/png;base64,"), validate=True)
        with Image.open(io.BytesIO(content)) as opened:
            assert opened.format == "PNG"
            assert (str(opened.width), str(opened.height)) == (picture["width"], picture["height"])
        assert len(picture["alt"]) > 20
        shown.add(content)
    # psnr.png is the one that the page draws itself
    assert shown == {f.read_bytes() for f in ROOT.glob("data/report/*.png") if f.name != "psnr.png"}


def test_nothing_comes_from_elsewhere_and_every_reference_leads_somewhere(text, read):
    said = re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)  # where any four letters may stand by chance
    assert "http" not in said
    assert not re.search(r"url\(|@import", said)
    ids = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in read.elements:
        for name in ("aria-controls", "aria-labelledby", "for"):
            assert attributes.get(name, ids[0]) in ids
        for name in ("href", "src"):
            target = attributes.get(name, "data:,")
            assert target.startswith("data:") or target.removeprefix("#") in ids


def test_prose_holds_no_result():
    template = (ROOT / "tools/page.html.j2").read_text()
    prose = template.split("</style>")[1].split("<script>")[0]
    assert not re.search(r"\d\.\d", prose)


def test_what_the_run_names_is_text_and_no_markup(ran, tmp_path, monkeypatch):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    lock = (tmp_path / "dvc.lock").read_text()
    (tmp_path / "dvc.lock").write_text(lock.replace("imgs/standard/coffee.png", "imgs/<b>&amp;.png"))
    monkeypatch.chdir(tmp_path)
    assert "imgs/&lt;b&gt;&amp;amp;.png" in page.render()


def drop(file):
    file.unlink()


def cut(file):
    file.write_bytes(file.read_bytes()[:-40])


def empty(file):
    file.write_bytes(b"")


def conflict(file):
    file.write_text("<<<<<<< HEAD\n" + file.read_text())


def rename(file):
    file.write_text(file.read_text().replace("cs_25,", "cs_26,"))


def change(file):
    file.write_text(file.read_text() + " ")  # as another run would: still metrics, but not those of dvc.lock


@pytest.mark.parametrize(
    ("file", "harm"),
    [
        ("metrics/evaluate_vae.json", change),
        ("dvc.lock", drop),
        ("dvc.lock", empty),
        ("dvc.lock", conflict),
        ("metrics/patches.json", drop),
        ("metrics/train_vae.json", cut),
        ("metrics/chapter.json", empty),
        ("data/report/table.csv", drop),
        ("data/report/table.csv", empty),
        ("data/report/table.csv", rename),
        ("data/report/samples.png", drop),
        ("data/report/posterior_gan.png", cut),
        ("data/report/curves.png", empty),
    ],
)
def test_a_missing_or_damaged_file_is_named_and_leaves_the_old_page(file, harm, ran, tmp_path, monkeypatch):
    shutil.copytree(ran, tmp_path, dirs_exist_ok=True)
    harm(tmp_path / file)
    (tmp_path / "report.html").write_text("old")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["page"])
    with pytest.raises(SystemExit) as stopped:
        run(page.main)
    message = stopped.value.code
    assert message.startswith(f"error: {file}: ")
    assert "`make repro`" in message
    assert "\n" not in message
    assert (tmp_path / "report.html").read_text() == "old"
    assert not list(tmp_path.glob(".*.html"))


def test_the_page_goes_where_it_is_sent(ran, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(ran)
    monkeypatch.setattr("sys.argv", ["page", "--out", str(tmp_path / "new/page.html")])
    page.main()
    assert (tmp_path / "new/page.html").read_text(encoding="utf-8") == text
    assert "page.html" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["page", "--out", str(tmp_path)])
    with pytest.raises(SystemExit, match="is a folder"):
        run(page.main)


# Runs in a copy of the page, 375 pixels wide, and sends what it finds to the document around it: a window of headless
# Chromium is never narrower than 500.
PROBE = """
<script>
const all = (what, within = document) => [...within.querySelectorAll(what)];
const tooWide = () => document.documentElement.scrollWidth > innerWidth;
const press = (key) => document.activeElement.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true}));
const probe = () => {
  const found = {width: innerWidth, wide: [], tabs: [], slider: []};
  found.missing = all("img").filter((image) => !image.naturalWidth).map((image) => image.alt);
  for (const details of all("details")) details.open = true;
  if (tooWide()) found.wide.push("at first");
  for (const list of all("[role=tablist]")) {
    const tabs = all("[role=tab]", list);
    const panels = tabs.map((tab) => document.getElementById(tab.getAttribute("aria-controls")));
    const state = () => [
      tabs.filter((tab) => tab.ariaSelected === "true").map((tab) => tab.textContent).join(),
      panels.filter((panel) => panel.offsetHeight).map((panel) => panel.id).join(),
      document.activeElement.textContent,
    ];
    for (const tab of tabs) {
      tab.focus();
      tab.click();
      found.tabs.push(state());
      if (tooWide()) found.wide.push(tab.textContent);
    }
    for (const key of ["ArrowRight", "ArrowLeft", "Home", "ArrowRight", "End"]) {
      press(key);
      found.tabs.push(state());
    }
  }
  const slider = document.querySelector("input[type=range]");
  for (let at = slider.min; at <= Number(slider.max); at++) {
    slider.value = at;
    slider.dispatchEvent(new Event("input"));
    const rows = all("[data-places]", slider.closest(".slider"));
    const shown = rows.map((row) => [...all("span, b", row).map((part) => part.textContent), row.style.cssText]);
    found.slider.push([document.querySelector("output").value, shown]);
  }
  const scroll = document.querySelector("table").parentElement;
  scroll.scrollLeft = 1000;
  found.scrolled = scroll.scrollLeft;
  found.sticky = scroll.querySelector("tbody th").getBoundingClientRect().left - scroll.getBoundingClientRect().left;
  parent.postMessage(JSON.stringify(found), "*");
};
addEventListener("load", probe);
</script>
"""
FRAME = """<!doctype html><meta charset="utf-8"><body><iframe src="page.html" width="375" height="800"></iframe>
<script>addEventListener("message", (event) => { document.body.textContent = "FOUND" + event.data; });</script>"""


def browse(text: str, folder) -> tuple[dict, list[str]]:
    """What the probe finds in a page, and what Chromium's console says of it."""
    (folder / "page.html").write_text(text.replace("</body>", PROBE + "</body>"), encoding="utf-8")
    (folder / "frame.html").write_text(FRAME, encoding="utf-8")
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--enable-logging=stderr",
        "--virtual-time-budget=20000",
    ]
    done = subprocess.run(
        [CHROMIUM, *options, f"--user-data-dir={folder / 'profile'}", "--dump-dom", (folder / "frame.html").as_uri()],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        check=True,
    )
    sent = re.search(r"<body>FOUND(.*?)</body>", done.stdout, re.DOTALL)
    found = json.loads(sent.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")) if sent else {}
    return found, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome here")


@pytest.mark.process
@needs_browser
def test_page_in_a_browser_on_a_phone(text, tmp_path, params):
    found, console = browse(text, tmp_path)
    assert console == []
    assert found["width"] == 375
    assert found["missing"] == []
    assert found["wide"] == []

    problems = [(name.replace("_", " "), f"problem-{name}") for name in params.problems]
    priors = [("autoencoder", "prior-ae"), ("VAE", "prior-vae"), ("GAN", "prior-gan")]
    expected = []
    for tabs in (problems, priors):
        expected += [*tabs, tabs[0], tabs[-1], tabs[0], tabs[1], tabs[-1]]  # clicked through, then by key
    assert [tuple(state) for state in found["tabs"]] == [(name, panel, name) for name, panel in expected]

    n = 16 * 16
    vae = metrics("evaluate_vae")["vae"]["relaxed"]
    places = []
    for m, (output, rows) in zip(params.crossover.measurements, found["slider"], strict=True):
        assert output == f"{m} of {n}"
        ((shown, place),) = [row[1:] for row in rows if row[0] == "VAE, relaxed"]
        assert shown == f"{vae[f'm_{m}']['psnr_db']:.2f}"
        places.append(float(re.fullmatch(r"--place: ?(.*)%;", place).group(1)))
    order = sorted(range(len(places)), key=lambda i: vae[f"m_{params.crossover.measurements[i]}"]["psnr_db"])
    assert [places[i] for i in order] == sorted(places)
    assert places[0] != places[-1]

    assert found["scrolled"] > 0
    assert abs(found["sticky"]) < 1


@pytest.mark.process
@needs_browser
def test_browser_sees_what_is_broken(text, tmp_path):
    broken = text.replace("data:image/png;base64,iVBOR", "data:image/png;base64,AAAAA", 1)
    broken = broken.replace("</main>", '<p style="width: 400px">wide</p></main><script>undefined.x</script>')
    found, console = browse(broken, tmp_path)
    assert len(found["missing"]) == 1
    assert "at first" in found["wide"]
    assert any("TypeError" in line for line in console)
