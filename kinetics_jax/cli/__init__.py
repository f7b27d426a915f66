"""Run it: the command `kinetics`, one file a command."""

from . import compact as compact
from . import sample as sample
from ._app import app as app
from ._app import main as main
