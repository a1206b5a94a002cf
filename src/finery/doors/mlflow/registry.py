"""MLflow's registered models, kept among our own models."""
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
class Registry(SqlAlchemyStore):
    def __init__(self,url,*,house,runs,workspace): super().__init__(url)
