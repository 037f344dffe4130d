"""The tests, and the tests of users, pass whatever starts them."""

import os
import signal
import subprocess
import sys

IGNORED = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM)

IMPORT_ALL = """
import importlib, pkgutil, gridscore
names = [module.name for module in pkgutil.walk_packages(gridscore.__path__, "gridscore.")]
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
print(len(names))
"""


def test_children_get_the_default_dispositions_of_signals():
    asked = "import signal; print([signal.getsignal(n) == signal.SIG_IGN for n in (1, 2, 3, 15)])"
    told = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout
    assert told.strip() == "[False, False, False, False]"


def test_children_get_them_when_a_parent_ignores_signals():
    def ignore():
        for number in IGNORED:
            signal.signal(number, signal.SIG_IGN)

    name = f"{__file__}::{test_children_get_the_default_dispositions_of_signals.__name__}"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(  # nothing else runs in this process while it forks
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name],
        preexec_fn=ignore,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout


def test_no_import_of_ours_warns():
    ran = [sys.executable, "-W", "error", "-c", IMPORT_ALL]
    ended = subprocess.run(ran, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) > 200
