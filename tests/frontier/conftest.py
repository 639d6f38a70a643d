from tests.train.conftest import given

__all__ = ["given"]
