# Asks the broker for its versions, as any client does first. Topics belong to being ready; the JVMs that make them run once.
exec 3<>/dev/tcp/localhost/9092
printf '\0\0\0\12\0\22\0\0\0\0\0\0\377\377' >&3
[ $(timeout 2 head -c 8 <&3 | wc -c) = 8 ]
[ ! -e /tmp/topics ] || exit 0
for topic in payments scores; do
  /opt/kafka/bin/kafka-topics.sh --bootstrap-server localhost:9092 --create --if-not-exists --topic $topic
done
touch /tmp/topics
