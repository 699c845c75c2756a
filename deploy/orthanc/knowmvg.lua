-- Sends films (CR, DX) and reports (SR) on to KnowMVG Node as they arrive, each by a job of Orthanc's own. Orthanc does
-- not repeat a job that failed (the node is being updated, or refuses for now): the next that succeeds has it repeated.
local NODE = 'knowmvg'            -- its name in DicomModalities
local NODE_AE_TITLE = 'KNOWMVG'   -- what comes from there are results: they do not go back
local TRIES = 5                   -- of an instance that is refused while others are taken

local failed, tries = {}, {}      -- by the job's ID

local function sendsToNode(jobId)
  local job = ParseJson(RestApiGet('/jobs/' .. jobId, true))
  return job['Type'] == 'DicomModalityStore' and job['Content']['RemoteAet'] == NODE_AE_TITLE
end

function OnStoredInstance(instanceId, tags, metadata, origin)
  local modality = tags['Modality']
  if origin['RemoteAet'] ~= NODE_AE_TITLE and (modality == 'CR' or modality == 'DX' or modality == 'SR') then
    RestApiPost('/modalities/' .. NODE .. '/store', DumpJson({Resources = {instanceId}, Synchronous = false}), true)
  end
end

function OnJobFailure(jobId)
  if sendsToNode(jobId) then
    failed[jobId] = true
    tries[jobId] = (tries[jobId] or 0) + 1
  end
end

function OnJobSuccess(jobId)
  if not sendsToNode(jobId) then
    return
  end
  tries[jobId] = nil
  for id in pairs(failed) do
    failed[id] = nil
    if tries[id] < TRIES then
      RestApiPost('/jobs/' .. id .. '/resubmit', '', true)
    end
  end
end
