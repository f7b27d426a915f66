"""Run it: the command `kinetics`, one file a command."""

from . import allocate as allocate
from . import bench as bench
from . import capacity as capacity
from . import card as card
from . import convert as convert
from . import cost as cost
from . import demo as demo
from . import export as export
from . import figures as figures
from . import frontier as frontier
from . import grade as grade
from . import iso_cost as iso_cost
from . import sample as sample
from . import tasks as tasks
from . import traces as traces
from . import train as train
from . import verify as verify
from ._app import app as app
from ._app import main as main
