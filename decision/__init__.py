"""Decision kernel: tasks, questions, prompts, label tokens and readouts. Imports nothing of ours."""
