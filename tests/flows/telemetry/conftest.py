from tests.tasks.conftest import engine, job_of

__all__ = ["engine", "job_of"]
