"""The order in which a human should look at labels."""

import pytest

from mtfixmatch.inference.review import image_unsure
from mtfixmatch.tasks.auto_labels import AutoLabel, LabeledImage, Review


def test_tasks_count_alike_in_the_order_of_images():
    def image(**shares):
        labels = {
            name: AutoLabel(review=[Review("a", x, 0.5) for x in values])
            for name, values in shares.items()
        }
        return LabeledImage(record={}, path="a", name="a", size=(1, 1), labels=labels)

    assert image_unsure(image(boxes=[1.0, 0.0, 0.5], map=[0.1])) == pytest.approx(0.3)
    assert image_unsure(image(boxes=[], map=[0.1, 0.3])) == pytest.approx(0.2)
    assert image_unsure(image(boxes=[], map=[])) == 0.0
