"""What a run is about: embedded reviews and dialogues, labelled text, the user's own files; and an embedded game."""

from rlhf_gym.preferences import Demonstration
from rlhf_gym.tasks.customer import customer_task
from rlhf_gym.tasks.files import files_task
from rlhf_gym.tasks.guessing import GuessingGame, guessing_policy, guessing_tokenizer, optimal_questions
from rlhf_gym.tasks.labelled_text import labelled_text_task
from rlhf_gym.tasks.reviews import reviews_task
from rlhf_gym.tasks.task import Others, Task

__all__ = [
    "Demonstration",
    "GuessingGame",
    "Others",
    "Task",
    "customer_task",
    "files_task",
    "guessing_policy",
    "guessing_tokenizer",
    "labelled_text_task",
    "optimal_questions",
    "reviews_task",
]
