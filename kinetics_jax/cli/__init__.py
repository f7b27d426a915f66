"""Run it: the command `kinetics`, one file a command."""

from . import capacity as capacity
from . import card as card
from . import compact as compact
from . import cost as cost
from . import demo as demo
from . import iso_cost as iso_cost
from . import sample as sample
from . import train as train
from ._app import app as app
from ._app import main as main
