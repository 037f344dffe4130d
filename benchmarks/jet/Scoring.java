package gridscore.bench;

import com.hazelcast.core.HazelcastJsonValue;
import com.hazelcast.function.FunctionEx;
import com.hazelcast.jet.pipeline.JournalInitialPosition;
import com.hazelcast.jet.pipeline.Pipeline;
import com.hazelcast.jet.pipeline.ServiceFactories;
import com.hazelcast.jet.pipeline.Sinks;
import com.hazelcast.jet.pipeline.Sources;
import com.hazelcast.jet.pipeline.StreamStage;
import com.hazelcast.jet.python.PythonServiceConfig;
import com.hazelcast.jet.python.PythonTransforms;
import com.hazelcast.jet.Util;
import com.hazelcast.map.EventJournalMapEvent;
import com.hazelcast.map.IMap;
import java.util.concurrent.CompletableFuture;

/**
 * The pipeline: journal of events, lookups, {@code mapUsingPython}, map of results.
 *
 * <p>The handler takes and gives strings only. In goes a JSON array: key, event, and in two variants the two entries
 * that were looked up. Out comes the key, a tab, and the result.
 *
 * @param variant where lookups are made: in the {@code dictionary} of the handler, in a {@code replicated} map, or in an
 *     {@code imap}
 * @param handler folder of the handler
 * @param events map of events
 * @param results map of results
 * @param customers map of one lookup
 * @param shops map of the other
 */
record Scoring(String variant, String handler, String events, String results, String customers, String shops) {
    private static final int BATCH = 4_096;
    private static final int CONCURRENT_GETS = 1_024;

    /** From a position of the journal on, with so many Python processes a member. */
    Pipeline pipeline(JournalInitialPosition position, int parallelism) {
        Pipeline pipeline = Pipeline.create();
        pipeline.setPreserveOrder(false);
        FunctionEx<EventJournalMapEvent<String, HazelcastJsonValue>, String> open =
                event -> "[\"" + event.getKey() + "\"," + event.getNewValue();
        StreamStage<String> stage = pipeline.readFrom(
                        Sources.<String, String, HazelcastJsonValue>mapJournal(
                                events, position, open, Util.mapPutEvents()))
                .withoutTimestamps();
        stage = switch (variant) {
            case "dictionary" -> stage;
            case "replicated" -> replicated(replicated(stage, customers, "user"), shops, "merchant");
            case "imap" -> imap(imap(stage, customers, "user"), shops, "merchant");
            default -> throw new IllegalArgumentException(variant);
        };
        PythonServiceConfig python = new PythonServiceConfig().setBaseDir(handler).setHandlerModule("handler");
        stage.map(text -> text + "]")
                .apply(PythonTransforms.mapUsingPython(python, BATCH))
                .setLocalParallelism(parallelism)
                .writeTo(Sinks.map(
                        results,
                        line -> line.substring(0, line.indexOf('\t')),
                        line -> new HazelcastJsonValue(line.substring(line.indexOf('\t') + 1))));
        return pipeline;
    }

    private static StreamStage<String> replicated(StreamStage<String> stage, String name, String field) {
        return stage.<String, HazelcastJsonValue, String>mapUsingReplicatedMap(
                name, text -> value(text, field), (text, entry) -> text + "," + entry);
    }

    private static StreamStage<String> imap(StreamStage<String> stage, String name, String field) {
        // As mapUsingIMap, which has no more than four requests under way, and hands every answer to another thread.
        return stage.mapUsingServiceAsync(
                ServiceFactories.<String, HazelcastJsonValue>iMapService(name),
                CONCURRENT_GETS,
                false,
                (IMap<String, HazelcastJsonValue> map, String text) -> {
                    CompletableFuture<String> joined = new CompletableFuture<>();
                    map.getAsync(value(text, field)).whenCompleteAsync(
                            (entry, error) -> {
                                if (error == null) {
                                    joined.complete(text + "," + entry);
                                } else {
                                    joined.completeExceptionally(error);
                                }
                            },
                            Runnable::run);
                    return joined;
                });
    }

    /** The value of a string field, found without parsing the rest: values of these events have no escapes. */
    private static String value(String text, String field) {
        String start = "\"" + field + "\":\"";
        int begin = text.indexOf(start) + start.length();
        return text.substring(begin, text.indexOf('"', begin));
    }
}
