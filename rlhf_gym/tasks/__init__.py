"""What a run is about: the embedded reviews and dialogues, any labelled text, or the user's own files."""

from rlhf_gym.preferences import Demonstration
from rlhf_gym.tasks.customer import customer_task
from rlhf_gym.tasks.files import files_task
from rlhf_gym.tasks.labelled_text import labelled_text_task
from rlhf_gym.tasks.reviews import reviews_task
from rlhf_gym.tasks.task import Task

__all__ = ["Demonstration", "Task", "customer_task", "files_task", "labelled_text_task", "reviews_task"]
