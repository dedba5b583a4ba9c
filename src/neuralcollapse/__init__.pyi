# The public names, said once: type checkers read this file, and so does __init__.py.
from . import ufm as ufm
from .capture.collect import collect as collect
from .capture.collect import measure as measure
from .capture.features import measure_features as measure_features
from .capture.metric import NeuralCollapse as NeuralCollapse
from .checkpoints.series import measure_checkpoints as measure_checkpoints
from .errors import InputError as InputError
from .errors import NeuralCollapseWarning as NeuralCollapseWarning
from .geometry.classes import frequent_classes as frequent_classes
from .geometry.directional import directional_cdnv as directional_cdnv
from .geometry.few_shot import FewShotError as FewShotError
from .geometry.few_shot import few_shot_error as few_shot_error
from .geometry.frames import nearest_simplex_etf as nearest_simplex_etf
from .geometry.frames import orthoplex as orthoplex
from .geometry.frames import simplex_etf as simplex_etf
from .geometry.measures import measures as measures
from .geometry.moments import ClassMoments as ClassMoments
from .geometry.pairs import worst_pairs as worst_pairs
from .geometry.softmax_code import coherence as coherence
from .geometry.softmax_code import softmax_code as softmax_code
from .geometry.standard_errors import standard_errors as standard_errors
from .heads.beyond_simplex import OrthoplexClassifier as OrthoplexClassifier
from .heads.beyond_simplex import SoftmaxCodeClassifier as SoftmaxCodeClassifier
from .heads.etf import ETFClassifier as ETFClassifier
from .heads.fix import fix_classifier as fix_classifier
from .loops.huggingface import CollapseTrainerCallback as CollapseTrainerCallback
from .loops.lightning import CollapseCallback as CollapseCallback
from .loops.recorder import Recorder as Recorder
from .networks.build import build_network as build_network
from .report.single import write_page as write_page
from .runs.reading import read_run as read_run
from .runs.records import Record as Record
from .training.config import TrainConfig as TrainConfig
from .training.run import resume as resume
from .training.run import train as train

__version__: str
