from slm.config import PipelineConfig as PipelineConfig
from slm.errors import SlmError as SlmError
from slm.errors import UserError as UserError
from slm.evaluation.evaluate import evaluate as evaluate
from slm.orchestration.encoding import encode as encode
from slm.orchestration.health import doctor as doctor
from slm.orchestration.outline import run as run
from slm.planning.plan import plan as plan
from slm.project.start import init as init
from slm.recipes import load_recipe as load_recipe
from slm.registry.gate import promote as promote
from slm.registry.opening import load_model as load_model
from slm.registry.opening import open_run as open_run
from slm.registry.register import register as register
from slm.registry.sampling import sample as sample
from slm.report.write import write_report as write_report
from slm.run_folder import DataRoot as DataRoot
from slm.run_folder import RunFolder as RunFolder
from slm.source.download import download as download
from slm.training.derive import finish as finish
from slm.training.derive import train_longer as train_longer
from slm.training.launch import resume as resume
from slm.training.launch import train as train
from slm.training.stop import stop as stop

__version__: str
