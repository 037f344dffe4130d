package gridscore.bench;

import static java.util.Objects.requireNonNull;

import com.hazelcast.client.HazelcastClient;
import com.hazelcast.client.config.ClientConfig;
import com.hazelcast.core.HazelcastInstance;
import com.hazelcast.core.HazelcastJsonValue;
import com.hazelcast.jet.Job;
import com.hazelcast.jet.JobStatusEvent;
import com.hazelcast.jet.config.JobConfig;
import com.hazelcast.jet.core.JobStatus;
import com.hazelcast.jet.pipeline.JournalInitialPosition;
import com.hazelcast.replicatedmap.ReplicatedMap;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.util.HashMap;
import java.util.List;
import java.util.Map;

/**
 * Starts and ends a scoring job, as the lines of its standard input say; it ends when they end.
 *
 * <p>Arguments: cluster name, addresses, variant, handler folder, map of events, map of results, then of each lookup its
 * map. Lines: {@code start START_FROM_OLDEST 2} (Python processes a member), {@code start START_FROM_CURRENT 1},
 * {@code cancel}. It answers each with a line, {@code done}, or {@code failed} and why. When the job ends by itself, it says {@code ended} and why.
 */
public final class Jobs {
    private static final int CHUNK = 1_000;

    private Jobs() {}

    public static void main(String[] arguments) throws Exception {
        ClientConfig config = new ClientConfig();
        config.setClusterName(arguments[0]);
        config.getNetworkConfig().setAddresses(List.of(arguments[1].split(",")));
        // A lost cluster is lost: whoever started this wants to hear of it, not to wait.
        config.getConnectionStrategyConfig().getConnectionRetryConfig().setClusterConnectTimeoutMillis(10_000);
        HazelcastInstance client = HazelcastClient.newHazelcastClient(config);
        Scoring scoring =
                new Scoring(arguments[2], arguments[3], arguments[4], arguments[5], arguments[6], arguments[7]);
        List<String> replicated =
                scoring.variant().equals("replicated") ? List.of(scoring.customers(), scoring.shops()) : List.of();
        try {
            replicated.forEach(name -> replicate(client, name));
            serve(client, scoring);
        } finally {
            replicated.forEach(name -> client.getReplicatedMap(name).destroy());
            client.shutdown();
        }
    }

    private static void serve(HazelcastInstance client, Scoring scoring) throws Exception {
        BufferedReader lines = new BufferedReader(new InputStreamReader(System.in));
        Job job = null;
        System.out.println("done");
        for (String line; (line = lines.readLine()) != null; ) {
            try {
                if (line.startsWith("start ")) {
                    String[] words = line.split(" ");
                    JournalInitialPosition position = JournalInitialPosition.valueOf(words[1]);
                    int parallelism = Integer.parseInt(words[2]);
                    // No snapshots: Jet at its fastest, and without a promise after a failure.
                    job = client.getJet().newJob(scoring.pipeline(position, parallelism), new JobConfig().setAutoScaling(false));
                    await(job, JobStatus.RUNNING);
                    job.addStatusListener(Jobs::changed);
                } else {
                    requireNonNull(job, "no job").cancel();
                    await(job, JobStatus.FAILED);
                    job = null;
                }
                System.out.println("done");
            } catch (Exception error) {
                System.out.println("failed " + String.valueOf(error).replace('\n', ' '));
            }
        }
        if (job != null) {
            job.cancel();
        }
    }

    private static void changed(JobStatusEvent event) {
        if (event.getNewStatus().isTerminal() && !event.isUserRequested()) {
            System.out.println("ended " + String.valueOf(event.getDescription()).replace('\n', ' '));
        }
    }

    private static void await(Job job, JobStatus wanted) throws InterruptedException {
        for (JobStatus status; (status = job.getStatus()) != wanted; ) {
            if (status.isTerminal()) {
                job.join(); // throws what it failed with
            }
            Thread.sleep(5);
        }
    }

    /** Every member gets all entries of the map, in a replicated map of the same name. */
    private static void replicate(HazelcastInstance client, String name) {
        ReplicatedMap<String, HazelcastJsonValue> replicas = client.getReplicatedMap(name);
        Map<String, HazelcastJsonValue> chunk = new HashMap<>();
        for (Map.Entry<String, HazelcastJsonValue> entry : client.<String, HazelcastJsonValue>getMap(name)) {
            chunk.put(entry.getKey(), entry.getValue());
            if (chunk.size() == CHUNK) {
                replicas.putAll(chunk);
                chunk.clear();
            }
        }
        replicas.putAll(chunk);
    }
}
