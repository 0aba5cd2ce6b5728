"""The page of predictions: its data, and its controls in a real browser where there is one."""

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from detectron2.config import get_cfg
from PIL import Image

from mtfixmatch.config import add_mtfixmatch_config
from mtfixmatch.inference.journal import Journal, finished
from mtfixmatch.inference.page import page_parts
from mtfixmatch.inference.shots import Shot
from mtfixmatch.inference.sources import Item
from mtfixmatch.tasks import build_tasks

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
SIZE = (40, 80)
# By image: boxes [class, score, x0, y0, x1, y1], and the classes of its map.
IMAGES = {
    "a b#%?.png": ([[0, 0.9, 1.0, 2.0, 11.004, 22.0], [1, 0.61, 5.0, 5.0, 30.0, 30.0]], [0, 1]),
    "nächte/</script>.png": ([[0, 0.5, 0.0, 0.0, 80.0, 40.0]], [1]),
    "empty.png": ([], [2]),
}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The page, in a folder with the files it shows."""
    folder = tmp_path_factory.mktemp("a page")
    cfg = get_cfg()
    add_mtfixmatch_config(cfg)
    cfg.TASKS.DETECTION.CLASSES = ["cat", "<b>dog"]
    cfg.TASKS.SEGMENTATION.CLASSES = ["sky", "road", "tree"]
    tasks = build_tasks(cfg)
    pixels = np.zeros((*SIZE, 3), np.uint8)
    with Journal(str(folder), 0) as journal:
        for number, (name, (boxes, classes)) in enumerate(IMAGES.items()):
            item = Item(name, "", f"{'sub/' if number else ''}x #%? {number}")
            records = {"detection": {"boxes": boxes}, "segmentation": {"classes": classes}}
            journal.add(Shot(item, 0, pixels), records)
            journal.end(item)
            layers = (f"{x}/segmentation" for x in ("maps", "confidence"))
            for place, suffix in (
                ("images", "jpg"),
                ("pictures", "jpg"),
                *((x, "png") for x in layers),
            ):
                path = folder / place / f"{item.out}.{suffix}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", SIZE[::-1]).save(path)
        video = Item("clip.mp4", "", "clip")
        journal.add(Shot(video, 0, pixels), {})
        journal.end(video)
    layers = [(tasks[1], "maps"), (tasks[1], "confidence")]
    info = {"model": "run@0123456789ab", "threshold": 0.5}
    items = list(finished(str(folder)).values())
    path = folder / "index.html"
    path.write_text("".join(page_parts(items, tasks, layers, info)), encoding="utf-8")
    return path


def data_of(page):
    found = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[0])


def test_the_data_of_the_page(page):
    data = data_of(page.read_text(encoding="utf-8"))
    assert data["info"] == {"model": "run@0123456789ab", "threshold": 0.5}
    assert [x["name"] for x in data["classes"]["detection"]] == ["cat", "<b>dog"]
    assert [(x["name"], x["hidden"]) for x in data["layers"]] == [
        ("maps", False),
        ("confidence", True),
    ]
    images = {x["name"]: x for x in data["images"]}
    assert list(images) == sorted(IMAGES)
    first = images["a b#%?.png"]
    assert (first["out"], first["width"], first["height"]) == ("x #%? 0", 80, 40)
    assert first["records"]["detection"]["boxes"][0] == [0, 0.9, 1.0, 2.0, 11.0, 22.0]
    assert first["records"]["segmentation"]["classes"] == [0, 1]
    assert data["videos"] == [{"name": "clip.mp4", "out": "clip"}]


def test_the_page_needs_no_network(page):
    addresses = set(re.findall(r"https?://[^\s\"']+", page.read_text(encoding="utf-8")))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, which is not fetched


STEPS = """
<pre id="log"></pre>
<script>
(async () => {
  const log = {};
  const stage = () => ({
    name: get("name").textContent,
    count: get("count").textContent,
    boxes: [...document.querySelectorAll("#stage text")].map((x) => x.textContent),
    images: [...document.querySelectorAll("#stage img")].map((x) => x.getAttribute("src")),
  });
  const set = (id, value, event) => {
    get(id).value = value;
    get(id).dispatchEvent(new Event(event));
  };
  const toggle = (name) => document.querySelector(`input[name="${name}"]`).click();
  const choose = (value) => set("class", value, "change");
  const loaded = async () => {
    const images = [...document.images];
    images.forEach((x) => { x.loading = "eager"; });
    for (let i = 0; i < 100 && !images.every((x) => x.complete); i += 1) {
      await new Promise((done) => setTimeout(done, 20));
    }
    return images.every((x) => x.naturalWidth === 80);
  };
  log.start = stage();
  log.loaded = await loaded();
  const rect = document.querySelector("#stage rect");
  log.rect = ["x", "y", "width", "height"].map((x) => Number(rect.getAttribute(x)));
  get("next").click(); log.next = stage();
  get("next").click(); log.third = stage();
  log.loadedThird = await loaded();
  get("next").click(); log.around = stage().name;
  document.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
  log.left = stage().name;
  get("next").click();
  set("threshold", "0.7", "input"); log.threshold = stage();
  choose("1 detection"); log.dogs = stage();
  set("threshold", "0.5", "input"); log.dogsAgain = stage();
  choose("2 segmentation"); log.trees = stage();
  choose(""); log.all = [stage().name, document.querySelectorAll("#list button").length];
  document.querySelectorAll("#list button")[0].click();
  toggle("maps segmentation"); toggle("confidence segmentation"); log.layers = stage();
  toggle("boxes detection"); log.noBoxes = stage().boxes;
  toggle("drawn"); log.drawn = stage();
  log.loadedDrawn = await loaded();
  log.options = [...document.querySelectorAll("#class option")].map((x) => x.textContent);
  log.video = document.querySelector("#videos a").getAttribute("href");
  const requests = performance.getEntriesByType("resource").map((x) => x.name.split(":")[0]);
  log.requests = [...new Set(requests)];
  get("log").textContent = JSON.stringify(log);
})().catch((error) => { get("log").textContent = JSON.stringify({ error: String(error) }); });
</script>
"""


@pytest.fixture(scope="module")
def log(page):
    """What the page shows while its controls are used."""
    if BROWSER is None:
        pytest.skip("there is no Chromium")
    test = page.with_name("test page.html")
    text = page.read_text(encoding="utf-8").replace("</body>", f"{STEPS}</body>")
    test.write_text(text, encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000")
    command = [BROWSER, *flags, "--window-size=1000,700", "--dump-dom", test.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r'<pre id="log">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr
    return json.loads(html.unescape(found[1]))


def test_images_and_boxes_are_shown(log):
    assert log["start"] == {
        "name": "a b#%?.png",
        "count": "1 of 3, 2 boxes",
        "boxes": ["cat 0.90", "<b>dog 0.61"],
        "images": ["images/x%20%23%25%3F%200.jpg", "maps/segmentation/x%20%23%25%3F%200.png"],
    }
    assert log["rect"] == [1, 2, 10, 20]
    assert log["loaded"] and log["loadedThird"] and log["loadedDrawn"]
    assert set(log["requests"]) <= {"file"}
    assert log["video"] == "pictures/clip.mp4"


def test_next_and_previous(log):
    assert log["next"]["name"] == "empty.png" and log["next"]["boxes"] == []
    assert log["third"]["name"] == "nächte/</script>.png"
    assert log["third"]["count"] == "3 of 3, 1 boxes"
    assert log["third"]["images"][0] == "images/sub/x%20%23%25%3F%201.jpg"
    assert log["around"] == "a b#%?.png" and log["left"] == "nächte/</script>.png"


def test_threshold_and_classes(log):
    assert log["threshold"]["boxes"] == ["cat 0.90"]
    assert log["dogs"]["name"] == "No image has this class."
    assert log["dogsAgain"]["boxes"] == ["<b>dog 0.61"]
    assert log["dogsAgain"]["count"] == "1 of 1, 1 boxes"
    assert (log["trees"]["name"], log["trees"]["count"]) == ("empty.png", "1 of 1, 0 boxes")
    assert log["all"] == ["empty.png", 3]
    assert log["options"] == ["all", "cat", "<b>dog", "sky", "road", "tree"]


def test_layers(log):
    assert log["layers"]["images"][1:] == ["confidence/segmentation/x%20%23%25%3F%200.png"]
    assert log["layers"]["boxes"] and not log["noBoxes"]
    assert log["drawn"]["images"] == ["pictures/x%20%23%25%3F%200.jpg"]
