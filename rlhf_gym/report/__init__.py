"""The report: one offline page made from a run folder, or from several."""

from rlhf_gym.report.charts import smooth
from rlhf_gym.report.page import write_report

__all__ = ["smooth", "write_report"]
