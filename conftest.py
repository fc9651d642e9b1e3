"""What takes long begins first, so that all processors end at about the same time."""

LONG = (
    "tests/test_site.py",
    "book/05-practice/rl.ipynb",
    "book/03-algorithms/training.ipynb",
    "book/06-applications/",
    "book/08-outlook/",
    "book/01-background/",
    "book/",
)


def pytest_collection_modifyitems(items):
    def turn(item):
        starts = [item.nodeid.startswith(path) for path in LONG]
        return starts.index(True) if True in starts else len(LONG)

    items.sort(key=turn)
