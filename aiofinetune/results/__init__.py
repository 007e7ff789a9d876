"""Read the results files of jobs, compare jobs, draw their curves, and measure a classifier's predictions."""

from aiofinetune.results._comparison import Comparison, Run
from aiofinetune.results._drawing import Line, Piece, draw_curves
from aiofinetune.results._figures import FigureSummary, title_of
from aiofinetune.results._metrics import accuracy, auprc, auroc, f_beta, precision, recall, weighted_f1
from aiofinetune.results._plot import plot_comparison, plot_curves
from aiofinetune.results._rows import ResultRow, Results, last_figures, read_results

__all__ = [
    "Comparison",
    "FigureSummary",
    "Line",
    "Piece",
    "ResultRow",
    "Results",
    "Run",
    "accuracy",
    "auprc",
    "auroc",
    "draw_curves",
    "f_beta",
    "last_figures",
    "plot_comparison",
    "plot_curves",
    "precision",
    "read_results",
    "recall",
    "title_of",
    "weighted_f1",
]
