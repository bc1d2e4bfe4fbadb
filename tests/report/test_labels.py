from itertools import combinations

from stillhouse.report import labels
from stillhouse.report.labels import Box

BOUNDS = Box(0, 0, 360, 230)


def test_overlap_by_hand() -> None:
    assert Box(0, 0, 4, 3).overlap(Box(2, 1, 9, 9)) == 4
    assert Box(0, 0, 1, 1).overlap(Box(1, 0, 2, 1)) == 0


def test_lone_label_stands_right_of_its_point() -> None:
    (box,) = labels.place([(100, 100)], [(40, 10)], obstacles=[], bounds=BOUNDS)
    assert box == Box(107, 95, 147, 105)
    assert labels.leader((100, 100), box) is None


def test_crowded_labels_cover_nothing_and_stay_inside() -> None:
    points = [(200.0 + 3 * n, 115.0 + 2 * n) for n in range(8)]
    obstacles = [Box(x - 4, y - 4, x + 4, y + 4) for x, y in points]
    boxes = labels.place(points, [(58, 12)] * 8, obstacles=obstacles, bounds=BOUNDS)
    assert all(one.overlap(other) == 0 for one, other in combinations(boxes, 2))
    assert all(box.overlap(obstacle) == 0 for box in boxes for obstacle in obstacles)
    assert all(box.overlap(BOUNDS) == box.area for box in boxes)
    assert any(labels.leader(point, box) for point, box in zip(points, boxes, strict=True))


def test_label_at_the_edge_turns_inward() -> None:
    (box,) = labels.place([(355, 100)], [(40, 10)], obstacles=[], bounds=BOUNDS)
    assert box.right < 355
