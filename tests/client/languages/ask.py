#!/usr/bin/python3
"""Uses the jobs API from Python, with the stubs that protoc makes: ask.py HOST:PORT STUBS JOB.yaml"""
import os
import sys

sys.path.insert(0, sys.argv[2])
import grpc  # noqa: E402
from proto.millrace.v1 import jobs_pb2, jobs_pb2_grpc  # noqa: E402


def refusal(call, request):
    try:
        call(request)
    except grpc.RpcError as error:
        return error.code(), error.details()
    raise AssertionError(f"not refused: {request}")


def main():
    jobs = jobs_pb2_grpc.JobsStub(grpc.insecure_channel(sys.argv[1]))
    with open(sys.argv[3], encoding="utf-8") as file:
        request = jobs_pb2.SubmitJobRequest(job_yaml=file.read(), base_directory=os.path.dirname(sys.argv[3]), idempotency_key="python",
                                            labels={"from": "python"}, overrides=["name=python", "priority=70"])

    request.validate_only = True
    checked = jobs.SubmitJob(request)
    assert checked.id == "" and checked.spec.phases[0].optimizer.epsilon == 1e-8, checked
    request.validate_only = False
    job = jobs.SubmitJob(request)
    assert job.id == "python" and job.spec.priority == 70, job
    assert jobs.SubmitJob(request).id == job.id, "the same key made another job"
    code, details = refusal(jobs.SubmitJob, jobs_pb2.SubmitJobRequest(job_yaml="name: x\nmodle: {}\n"))
    assert code == grpc.StatusCode.INVALID_ARGUMENT and "did you mean 'model'?" in details, details

    for index in range(5):
        jobs.SubmitJob(jobs_pb2.SubmitJobRequest(template_job_id="python", overrides=[f"name=page-{index}"]))
    found, token = [], ""
    while True:
        page = jobs.ListJobs(jobs_pb2.ListJobsRequest(name_prefix="page-", page_size=2, page_token=token))
        assert page.total == 5 and len(page.jobs) <= 2, page
        found += [listed.id for listed in page.jobs]
        token = page.next_page_token
        if not token:
            break
    assert found == [f"page-{index}" for index in range(5)], found
    updated = jobs.UpdateJob(jobs_pb2.UpdateJobRequest(job_id="page-3", priority=90, set_labels={"hurry": "yes"}))
    assert updated.queue_position == 1 or updated.state != jobs_pb2.Job.QUEUED, updated

    jobs.CancelJob(jobs_pb2.JobRequest(job_id="python"))
    events = list(jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id="python")))
    assert events[-1].state.state == jobs_pb2.Job.CANCELLED, events
    middle = events[len(events) // 2].sequence
    rest = list(jobs.WatchJob(jobs_pb2.WatchJobRequest(job_id="python", after_sequence=middle, kinds=["state"])))
    assert [e.sequence for e in rest] == [e.sequence for e in events if e.sequence > middle and e.HasField("state")]
    code, details = refusal(jobs.GetJob, jobs_pb2.GetJobRequest(job_id="none"))
    assert code == grpc.StatusCode.NOT_FOUND and "there are" in details, details
    print("Python is content.")


main()
