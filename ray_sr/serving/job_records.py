"""What is known of a job, as it lies in storage and travels between the processes of the service."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ray_sr.serving.options import UpscaleQuery
from ray_sr.serving.problems import Problem
from ray_sr.serving.schemas import JobState, JobStatus, ProblemDocument


class JobProblem(BaseModel):
    """Why a job failed: a Problem that can be stored."""

    kind: str
    detail: str
    headers: dict[str, str] = {}
    facts: dict[str, Any] = {}

    @classmethod
    def of(cls, problem: Problem) -> JobProblem:
        return cls(kind=problem.kind, detail=problem.detail, headers=problem.headers, facts=problem.facts)

    def restored(self) -> Problem:
        return Problem(self.kind, self.detail, headers=self.headers, **self.facts)


class JobRecord(BaseModel):
    """One job. `picture_bytes` and `result_bytes` are what it holds in storage; `headers`: of its result."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(default_factory=lambda: secrets.token_urlsafe(16))
    client: str = Field(description="who began it: the holder of the key, empty where no keys are asked for")
    idempotency_key: str | None = None
    fingerprint: str = Field(description="of picture and options, for requests that are sent again")
    query: UpscaleQuery
    picture_bytes: int
    root: str = Field("", description="path under which the service lies")
    webhook: str | None = None
    webhook_state: Literal["none", "due", "sent", "given up"] = "none"
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    expires_at: datetime
    state: JobState = "queued"
    starts: int = Field(0, description="how often the work was begun; more than once where processes ended")
    progress: float = 0.0
    result_bytes: int | None = None
    headers: dict[str, str] = {}
    problem: JobProblem | None = None

    @property
    def ended(self) -> bool:
        return self.state not in ("queued", "running")

    def changed(self, **fields: Any) -> JobRecord:
        return self.model_copy(update=fields)

    def status(self, root: str) -> JobStatus:
        """What the client sees; `root` is the path under which the service lies."""
        error = self.problem.restored().document("") if self.problem else None
        return JobStatus(
            id=self.id,
            status=self.state,
            progress=round(self.progress, 4),
            created_at=self.created_at,
            expires_at=self.expires_at,
            result_url=f"{root}/v1/jobs/{self.id}/result" if self.state == "succeeded" else None,
            error=ProblemDocument(**error) if error else None,
        )
